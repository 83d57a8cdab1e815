# SPDX-License-Identifier: Apache-2.0
"""What is kept of class maps: the confusion matrix, the worst and the best images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torch import Tensor

from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import SegmentationProtocol
from rekindle.evaluation.segmentation.dense_retrieval import DenseRetrieval
from rekindle.evaluation.segmentation.fpn import Fpn
from rekindle.evaluation.segmentation.linear_decoder import LinearDecoder
from rekindle.evaluation.segmentation.linear_seg import LinearSeg
from rekindle.evaluation.segmentation.upernet import UperNetProtocol
from rekindle.evaluation.training.predicted_maps import PredictedMaps
from rekindle.measuring.measurement import write_maps
from tests.evaluation.toy import NAMES, stripes, tiny_backbone, write_data, write_item

QUICK: dict[str, object] = {"steps": 2, "batch_size": 2, "warmup_steps": 0, "size_px": 16, "crop_px": 16}
PROTOCOLS: dict[type[SegmentationProtocol], dict[str, object]] = {  # type: ignore[type-arg]
    LinearSeg: {"size_px": 16, "steps": 3, "warmup_steps": 1},
    DenseRetrieval: {"size_px": 32, "memory_size": 30},
    LinearDecoder: QUICK,
    Fpn: QUICK | {"channels": 8, "head_channels": 8},
    UperNetProtocol: QUICK | {"channels": 8, "size_px": 64, "crop_px": 64},
}


def _partly_wrong(label: Tensor, columns: int) -> Tensor:
    """A map whose first columns have the next class."""
    prediction = label.clone()
    prediction[:, :columns] = (prediction[:, :columns] + 1) % len(NAMES)
    return prediction


def _graded(root: Path, wrong: list[int], keep: int) -> PredictedMaps:
    """Maps of images of which the i-th has so many wrong columns."""
    write_data(root, num_test=len(wrong))
    maps = PredictedMaps(SegmentationFolder(root, "val"), keep)
    for index, columns in enumerate(wrong):
        label = maps.data.mask(index)
        maps.count(index, _partly_wrong(label, columns), label)
    return maps


def test_the_matrix_is_that_of_scikit_learn_over_all_images(tmp_path: Path) -> None:
    write_data(tmp_path, num_test=4)
    maps, source = PredictedMaps(SegmentationFolder(tmp_path, "val"), 0), torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 9, 7), generator=source)
    predictions = torch.randint(0, 3, (4, 9, 7), generator=source)
    labels[torch.rand(labels.shape, generator=source) < 0.2] = 255
    for index in range(4):
        maps.count(index, predictions[index], labels[index])
    counted = labels != 255
    expected = sklearn_confusion(labels[counted].numpy(), predictions[counted].numpy())
    assert np.array_equal(maps.confusion, expected)
    assert not maps.worst and not maps.best


def test_worst_and_best_are_those_of_sorting_all(tmp_path: Path) -> None:
    wrong = [8, 40, 0, 24, 16, 48]
    maps = _graded(tmp_path, wrong, keep=2)
    assert [wrong[k.index] for k in maps.worst] == [48, 40]
    assert [wrong[k.index] for k in maps.best] == [0, 8]
    assert maps.best[0].iou == 1.0 and maps.worst[0].accuracy == 0.0
    assert maps.worst[0].item == "val5"


def test_no_image_is_both_worst_and_best(tmp_path: Path) -> None:
    maps = _graded(tmp_path, [0, 16, 32], keep=2)
    assert [k.index for k in maps.worst] == [2, 1]
    assert [k.index for k in maps.best] == [0]


def test_images_without_a_label_are_never_shown(tmp_path: Path) -> None:
    write_data(tmp_path, num_test=1)
    write_item(tmp_path, "val", "a_blank", np.full((16, 48), 255, np.uint8))
    maps = PredictedMaps(SegmentationFolder(tmp_path, "val"), 3)
    for index in range(2):
        maps.count(index, torch.zeros(16, 48, dtype=torch.int64), maps.data.mask(index))
    assert [k.item for k in maps.worst] == ["val0"]


def test_large_maps_are_kept_small_and_shown_in_the_shape_of_their_image(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_item(tmp_path, "val", "wide", stripes(1600, 400))
    maps = PredictedMaps(SegmentationFolder(tmp_path, "val"), 1)
    index = maps.data.items.index("wide")
    maps.count(index, torch.zeros(400, 400, dtype=torch.int64), torch.zeros(400, 400, dtype=torch.int64))
    assert tuple(maps.worst[0].prediction.shape) == (320, 320)
    shown = maps.picture(maps.worst[0])
    assert tuple(shown.image.shape) == (3, 80, 320)
    assert shown.label.shape == shown.prediction.shape == (80, 320)


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_every_protocol_of_class_maps_counts_what_it_scores(
    tmp_path: Path,
    kind: type[SegmentationProtocol],  # type: ignore[type-arg]
) -> None:
    write_data(tmp_path)
    config = kind.Config.model_validate(PROTOCOLS[kind])
    folders = SegmentationFolder(tmp_path, "train"), SegmentationFolder(tmp_path, "val")
    protocol = kind(config, FeatureExtractor(tiny_backbone()), *folders, keep_images=1)
    protocol.prepare()
    outcome = protocol.run(0)
    assert outcome.maps is not None
    hit, label, predicted = outcome.rows.sum(axis=0).reshape(3, -1)
    matrix = outcome.maps.confusion
    assert np.array_equal(matrix.diagonal(), hit)
    assert np.array_equal(matrix.sum(axis=1), label)
    assert np.array_equal(matrix.sum(axis=0), predicted)
    assert len(outcome.maps.worst) == len(outcome.maps.best) == 1


def test_tables_and_pictures_are_written(tmp_path: Path) -> None:
    maps = _graded(tmp_path / "data", [8, 40, 0, 24], keep=1)
    write_maps(maps, tmp_path / "drawn", draw=True)
    write_maps(maps, tmp_path / "plain", draw=False)
    tables, pictures = {"confusion.csv", "images.csv"}, {"confusion.png", "worst.png", "best.png"}
    assert {p.name for p in (tmp_path / "drawn").iterdir()} == tables | pictures
    assert {p.name for p in (tmp_path / "plain").iterdir()} == tables
    header, *lines = (tmp_path / "plain" / "confusion.csv").read_text().splitlines()
    assert header == "true class / predicted class,red,green,blue"
    assert [line.split(",")[0] for line in lines] == NAMES
    assert [list(map(int, line.split(",")[1:])) for line in lines] == maps.confusion.tolist()
    assert (tmp_path / "plain" / "images.csv").read_text().splitlines()[1].startswith("worst,val1,")
