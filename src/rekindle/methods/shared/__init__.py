# SPDX-License-Identifier: Apache-2.0
"""Shared parts of methods: teacher, heads, gradients in advance, corruption, masking."""
