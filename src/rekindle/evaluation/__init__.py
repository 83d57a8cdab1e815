# SPDX-License-Identifier: Apache-2.0
"""Evaluation protocols by name; a module is imported when its protocol is asked for. Torch-free."""

from __future__ import annotations

PROTOCOLS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.linear_seg:LinearSeg",
    "dense-retrieval": "rekindle.evaluation.dense_retrieval:DenseRetrieval",
    "linear-decoder": "rekindle.evaluation.linear_decoder:LinearDecoder",
}

OPTIONS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.options:LinearSegOptions",
    "dense-retrieval": "rekindle.evaluation.options:DenseRetrievalOptions",
    "linear-decoder": "rekindle.evaluation.training_options:LinearDecoderOptions",
}

SUMMARIES: dict[str, str] = {
    "linear-seg": "segmentation by BatchNorm and one linear layer on frozen patch features",
    "dense-retrieval": "segmentation by nearest neighbours of patch features, nothing is trained",
    "linear-decoder": "segmentation by one linear layer, fine-tuned together with the backbone (Segmenter)",
}
