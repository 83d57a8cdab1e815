# SPDX-License-Identifier: Apache-2.0
"""Images and labels on disk: finding, decoding, ordering for training, and readers of labelled data by kind. Torch-free."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "segmentation": "rekindle.data.segmentation:SegmentationFolder",
    "depth": "rekindle.data.depth:DepthFolder",
    "video": "rekindle.data.davis:DavisVideos",
    "classification": "rekindle.data.classification:ClassFolder",
    "retrieval": "rekindle.data.retrieval:RetrievalFolder",
    "objects": "rekindle.data.objects:open_objects",
    "images": "rekindle.data.pictures:PictureFolder",
}
"""Kind of labelled data -> its reader, built as reader(root, split)."""
