# SPDX-License-Identifier: Apache-2.0
"""The papers' equations: tensors in, tensors out; one file per family. No state, no configuration."""
