# SPDX-License-Identifier: Apache-2.0
"""Images and labels on disk: finding, decoding, ordering for training, segmentation folders."""
