# SPDX-License-Identifier: Apache-2.0
"""Verdict: the difference of two sides with its interval, and the word for it, alone and over many looks. Torch-free."""
