# SPDX-License-Identifier: Apache-2.0
"""A model measured: evaluate, compare, extract, and pictures of what a model sees."""
