# SPDX-License-Identifier: Apache-2.0
"""What protocols that learn share: options, crops, the loop, whole images."""
