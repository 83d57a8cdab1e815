# SPDX-License-Identifier: Apache-2.0
"""Matrix: every start x method x framework x seed trained, measured, and put into one table."""
