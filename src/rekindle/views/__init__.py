# SPDX-License-Identifier: Apache-2.0
"""Views: from an image to a batch, with crops, colours, geometry, patch distortion and regions."""
