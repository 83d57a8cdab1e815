# SPDX-License-Identifier: Apache-2.0
"""From runs and comparisons on disk to what a report shows."""
