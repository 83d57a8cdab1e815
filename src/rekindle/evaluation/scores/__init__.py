# SPDX-License-Identifier: Apache-2.0
"""Scores: from values of single items to one number and a file."""
