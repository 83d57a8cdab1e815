# SPDX-License-Identifier: Apache-2.0
"""Images and labels on disk: finding, decoding, ordering for training, and readers of labelled data by kind. Torch-free."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "segmentation": "rekindle.data.segmentation:SegmentationFolder",
    "depth": "rekindle.data.depth:DepthFolder",
}
"""Kind of labelled data -> its reader, built as reader(root, split)."""
