# SPDX-License-Identifier: Apache-2.0
"""Published data sets by name."""
