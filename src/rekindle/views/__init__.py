# SPDX-License-Identifier: Apache-2.0
"""From an image to a batch of views: crops, colours, geometry, patch distortion and regions."""
