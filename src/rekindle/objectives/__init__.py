# SPDX-License-Identifier: Apache-2.0
"""Equations of the papers: tensors in, tensors out; one file per family. No state, no configuration."""
