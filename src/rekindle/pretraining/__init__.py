# SPDX-License-Identifier: Apache-2.0
"""A run of pre-training: options, recipe, steps and costs, and what it leaves behind."""
