# SPDX-License-Identifier: Apache-2.0
"""What several methods have: teacher, heads, gradients in advance, corruption, masking."""
