# SPDX-License-Identifier: Apache-2.0
"""Features of images: extractors, shared and dense features, descriptors, health figures."""
