# SPDX-License-Identifier: Apache-2.0
"""Evaluation protocols by name; a module is imported when its protocol is asked for. Torch-free."""

from __future__ import annotations

PROTOCOLS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.linear_seg:LinearSeg",
    "dense-retrieval": "rekindle.evaluation.dense_retrieval:DenseRetrieval",
    "linear-decoder": "rekindle.evaluation.linear_decoder:LinearDecoder",
    "multi-label": "rekindle.evaluation.multi_label:MultiLabel",
    "depth": "rekindle.evaluation.depth:Depth",
}

OPTIONS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.options:LinearSegOptions",
    "dense-retrieval": "rekindle.evaluation.options:DenseRetrievalOptions",
    "linear-decoder": "rekindle.evaluation.training_options:LinearDecoderOptions",
    "multi-label": "rekindle.evaluation.training_options:MultiLabelOptions",
    "depth": "rekindle.evaluation.training_options:DepthOptions",
}

SUMMARIES: dict[str, str] = {
    "linear-seg": "segmentation by BatchNorm and one linear layer on frozen patch features",
    "dense-retrieval": "segmentation by nearest neighbours of patch features, nothing is trained",
    "linear-decoder": "segmentation by one linear layer, fine-tuned together with the backbone (Segmenter)",
    "multi-label": "which classes an image shows, as mean average precision: classification without localisation",
    "depth": "depth in metres by a DPT decoder on frozen features of four blocks",
}
