# SPDX-License-Identifier: Apache-2.0
"""Vision transformers that return `Tokens`, heads on top of them, and readers of everyone's checkpoints."""
