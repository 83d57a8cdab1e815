# SPDX-License-Identifier: Apache-2.0
"""Our own speed, with peers beside it: each side in a process of its own, rounds in turn, medians and spread."""
