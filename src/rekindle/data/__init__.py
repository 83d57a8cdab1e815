# SPDX-License-Identifier: Apache-2.0
"""Images and labels on disk: finding, decoding, ordering for training, and readers of labelled data by kind. Torch-free."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "segmentation": "rekindle.data.labelled.segmentation:SegmentationFolder",
    "depth": "rekindle.data.labelled.depth:DepthFolder",
    "video": "rekindle.data.labelled.davis:DavisVideos",
    "classification": "rekindle.data.labelled.classification:ClassFolder",
    "retrieval": "rekindle.data.labelled.retrieval:RetrievalFolder",
    "objects": "rekindle.data.labelled.objects:open_objects",
    "images": "rekindle.data.labelled.pictures:PictureFolder",
}
"""Kind of labelled data -> its reader, built as reader(root, split)."""
