# SPDX-License-Identifier: Apache-2.0
"""Measurement of models: evaluate, compare, extract, and pictures of what a model sees."""
