# SPDX-License-Identifier: Apache-2.0
"""Heads, decoders and blocks that are put on a `Backbone`."""
