# SPDX-License-Identifier: Apache-2.0
"""The training loop, which knows no method: steps, optimizer, checkpoints, logs."""
