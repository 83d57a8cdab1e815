# SPDX-License-Identifier: Apache-2.0
"""Evaluation protocols by name; a module is imported when its protocol is asked for. Torch-free."""

from __future__ import annotations

PROTOCOLS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.segmentation.linear_seg:LinearSeg",
    "dense-retrieval": "rekindle.evaluation.segmentation.dense_retrieval:DenseRetrieval",
    "linear-decoder": "rekindle.evaluation.segmentation.linear_decoder:LinearDecoder",
    "fpn": "rekindle.evaluation.segmentation.fpn:Fpn",
    "upernet": "rekindle.evaluation.segmentation.upernet:UperNetProtocol",
    "multi-label": "rekindle.evaluation.segmentation.multi_label:MultiLabel",
    "depth": "rekindle.evaluation.segmentation.depth:Depth",
    "video": "rekindle.evaluation.segmentation.video:Video",
    "prompted-seg": "rekindle.evaluation.segmentation.prompted_seg:PromptedSeg",
    "similarity": "rekindle.evaluation.description.similarity:Similarity",
    "variance": "rekindle.evaluation.description.variance:Variance",
    "clustering": "rekindle.evaluation.segmentation.clustering:Clustering",
    "knn": "rekindle.evaluation.classification.knn:Knn",
    "one-shot": "rekindle.evaluation.classification.one_shot:OneShot",
    "image-retrieval": "rekindle.evaluation.classification.image_retrieval:ImageRetrieval",
    "linear-probe": "rekindle.evaluation.classification.linear_probe:LinearProbe",
    "finetune": "rekindle.evaluation.classification.finetune:Finetune",
    "cka": "rekindle.evaluation.description.cka:Cka",
}

OPTIONS: dict[str, str] = {
    "linear-seg": "rekindle.evaluation.segmentation.options:LinearSegOptions",
    "dense-retrieval": "rekindle.evaluation.segmentation.options:DenseRetrievalOptions",
    "linear-decoder": "rekindle.evaluation.segmentation.options:LinearDecoderOptions",
    "fpn": "rekindle.evaluation.segmentation.options:FpnOptions",
    "upernet": "rekindle.evaluation.segmentation.options:UperNetOptions",
    "multi-label": "rekindle.evaluation.segmentation.options:MultiLabelOptions",
    "depth": "rekindle.evaluation.segmentation.options:DepthOptions",
    "video": "rekindle.evaluation.segmentation.options:VideoOptions",
    "prompted-seg": "rekindle.evaluation.segmentation.options:PromptedSegOptions",
    "similarity": "rekindle.evaluation.description.options:SimilarityOptions",
    "variance": "rekindle.evaluation.description.options:VarianceOptions",
    "clustering": "rekindle.evaluation.segmentation.options:ClusteringOptions",
    "knn": "rekindle.evaluation.classification.options:KnnOptions",
    "one-shot": "rekindle.evaluation.classification.options:OneShotOptions",
    "image-retrieval": "rekindle.evaluation.classification.options:ImageRetrievalOptions",
    "linear-probe": "rekindle.evaluation.classification.options:LinearProbeOptions",
    "finetune": "rekindle.evaluation.classification.options:FinetuneOptions",
    "cka": "rekindle.evaluation.description.options:CkaOptions",
}

SUMMARIES: dict[str, str] = {
    "linear-seg": "segmentation by BatchNorm and one linear layer on frozen patch features",
    "dense-retrieval": "segmentation by nearest neighbours of patch features, nothing is trained",
    "linear-decoder": "segmentation by one linear layer, fine-tuned together with the backbone (Segmenter)",
    "fpn": "segmentation by Semantic FPN, fine-tuned together with the backbone: the papers' main measure",
    "upernet": "segmentation by UPerNet, fine-tuned together with the backbone",
    "multi-label": "which classes an image shows, as mean average precision: classification without localisation",
    "depth": "depth in metres by a DPT decoder on frozen features of four blocks",
    "video": "objects of the first frame followed through a video by nearest patches, nothing is trained",
    "prompted-seg": "segmentation of an object from one of its patches by a threshold on the cosine, nothing is trained",
    "similarity": "overlap of the cosines of patches within a class and across classes; lower is better",
    "variance": "how much features change under crops and noise, without labels; lower is steadier",
    "clustering": "segmentation by k-means clusters of patch features, matched with the classes afterwards",
    "knn": "classification of images by their nearest neighbours, nothing is trained",
    "one-shot": "classification with one labelled image of each class, over many episodes",
    "image-retrieval": "finding images of the same place (revisited Oxford and Paris), as mean average precision",
    "linear-probe": "classification of images by one linear layer on frozen features",
    "finetune": "classification of images by fine-tuning the network, or its adapters alone",
    "cka": "how similar the patch features of the blocks are to the last one's, without labels",
}
