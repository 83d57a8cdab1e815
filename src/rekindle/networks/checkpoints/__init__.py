# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: from anybody's file or name to a `Backbone`, and back."""
