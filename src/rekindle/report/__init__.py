# SPDX-License-Identifier: Apache-2.0
"""Report: one page from runs and comparisons on disk."""
