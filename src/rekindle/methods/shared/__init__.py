# SPDX-License-Identifier: Apache-2.0
"""Concepts that several methods have: teacher, self-distillation, contrast, corruption, masking, gradients in advance."""
