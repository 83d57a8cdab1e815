# SPDX-License-Identifier: Apache-2.0
"""Training on labels, as protocols share it: options, crops, the loop, whole images."""
