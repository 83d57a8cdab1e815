# SPDX-License-Identifier: Apache-2.0
"""Evaluation protocols by name: code, summary, and where the options stand. A protocol is imported when asked for. Torch-free."""

from __future__ import annotations

from rekindle.core.tables import Entry

PROTOCOLS: dict[str, Entry] = {
    "linear-seg": Entry(
        "rekindle.evaluation.segmentation.linear_seg:LinearSeg",
        "segmentation by BatchNorm and one linear layer on frozen patch features",
        "rekindle.evaluation.segmentation.options:LinearSegOptions",
    ),
    "dense-retrieval": Entry(
        "rekindle.evaluation.segmentation.dense_retrieval:DenseRetrieval",
        "segmentation by nearest neighbours of patch features, nothing is trained",
        "rekindle.evaluation.segmentation.options:DenseRetrievalOptions",
    ),
    "linear-decoder": Entry(
        "rekindle.evaluation.segmentation.linear_decoder:LinearDecoder",
        "segmentation by one linear layer, fine-tuned together with the backbone (Segmenter)",
        "rekindle.evaluation.segmentation.options:LinearDecoderOptions",
    ),
    "fpn": Entry(
        "rekindle.evaluation.segmentation.fpn:Fpn",
        "segmentation by Semantic FPN, fine-tuned together with the backbone: the papers' main measure",
        "rekindle.evaluation.segmentation.options:FpnOptions",
    ),
    "upernet": Entry(
        "rekindle.evaluation.segmentation.upernet:UperNetProtocol",
        "segmentation by UPerNet, fine-tuned together with the backbone",
        "rekindle.evaluation.segmentation.options:UperNetOptions",
    ),
    "multi-label": Entry(
        "rekindle.evaluation.segmentation.multi_label:MultiLabel",
        "which classes an image shows, as mean average precision: classification without localisation",
        "rekindle.evaluation.segmentation.options:MultiLabelOptions",
    ),
    "depth": Entry(
        "rekindle.evaluation.segmentation.depth:Depth",
        "depth in metres by a DPT decoder on frozen features of four blocks",
        "rekindle.evaluation.segmentation.options:DepthOptions",
    ),
    "video": Entry(
        "rekindle.evaluation.segmentation.video:Video",
        "objects of the first frame followed through a video by nearest patches, nothing is trained",
        "rekindle.evaluation.segmentation.options:VideoOptions",
    ),
    "prompted-seg": Entry(
        "rekindle.evaluation.segmentation.prompted_seg:PromptedSeg",
        "segmentation of an object from one of its patches by a threshold on the cosine, nothing is trained",
        "rekindle.evaluation.segmentation.options:PromptedSegOptions",
    ),
    "similarity": Entry(
        "rekindle.evaluation.description.similarity:Similarity",
        "overlap of the cosines of patches within a class and across classes; lower is better",
        "rekindle.evaluation.description.options:SimilarityOptions",
    ),
    "variance": Entry(
        "rekindle.evaluation.description.variance:Variance",
        "how much features change under crops and noise, without labels; lower is steadier",
        "rekindle.evaluation.description.options:VarianceOptions",
    ),
    "clustering": Entry(
        "rekindle.evaluation.segmentation.clustering:Clustering",
        "segmentation by k-means clusters of patch features, matched with the classes afterwards",
        "rekindle.evaluation.segmentation.options:ClusteringOptions",
    ),
    "knn": Entry(
        "rekindle.evaluation.classification.knn:Knn",
        "classification of images by their nearest neighbours, nothing is trained",
        "rekindle.evaluation.classification.options:KnnOptions",
    ),
    "one-shot": Entry(
        "rekindle.evaluation.classification.one_shot:OneShot",
        "classification with one labelled image of each class, over many episodes",
        "rekindle.evaluation.classification.options:OneShotOptions",
    ),
    "image-retrieval": Entry(
        "rekindle.evaluation.classification.image_retrieval:ImageRetrieval",
        "finding images of the same place (revisited Oxford and Paris), as mean average precision",
        "rekindle.evaluation.classification.options:ImageRetrievalOptions",
    ),
    "linear-probe": Entry(
        "rekindle.evaluation.classification.linear_probe:LinearProbe",
        "classification of images by one linear layer on frozen features",
        "rekindle.evaluation.classification.options:LinearProbeOptions",
    ),
    "finetune": Entry(
        "rekindle.evaluation.classification.finetune:Finetune",
        "classification of images by fine-tuning the network, or its adapters alone",
        "rekindle.evaluation.classification.options:FinetuneOptions",
    ),
    "cka": Entry(
        "rekindle.evaluation.description.cka:Cka",
        "how similar the patch features of the blocks are to the last one's, without labels",
        "rekindle.evaluation.description.options:CkaOptions",
    ),
}
