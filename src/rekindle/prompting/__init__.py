# SPDX-License-Identifier: Apache-2.0
"""Places in an image in, a map and a mask of what is like them out: `rekindle prompt`, and what the app shows."""
