# SPDX-License-Identifier: Apache-2.0
"""Pictures and pages that are made from arrays and result files alone."""
