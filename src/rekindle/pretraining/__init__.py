# SPDX-License-Identifier: Apache-2.0
"""Pre-training run: options, recipe, steps and costs, and what it leaves behind."""
