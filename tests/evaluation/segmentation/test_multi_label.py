# SPDX-License-Identifier: Apache-2.0
"""Which classes an image shows, and average precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import TrainingPart
from rekindle.evaluation.scores.kinds import MeanAveragePrecision
from rekindle.evaluation.segmentation.multi_label import MultiLabel, present_classes
from rekindle.evaluation.segmentation.options import LinearDecoderOptions, MultiLabelOptions
from rekindle.evaluation.training.options import TrainingOptions
from tests.evaluation.toy import NAMES, tiny_backbone, write_item

MAP = MeanAveragePrecision(class_names=["a"])
Source = Literal["frozen", "finetuned", "segmentation"]


def test_worked_case() -> None:
    """LOCA, property 21: scores (.9, .8, .7, .6), labels (1, 0, 1, 0)."""
    rows = np.array([[0.9, 1], [0.8, 0], [0.7, 1], [0.6, 0]])
    assert MAP.value(rows) == pytest.approx(0.8333, abs=5e-5)


def test_equal_to_scikit_learn_and_to_repeated_items() -> None:
    source = np.random.default_rng(0)
    score = MeanAveragePrecision(class_names=list("abc"))
    scores, present = source.standard_normal((30, 3)), source.integers(0, 2, (30, 3))
    rows = np.concatenate([scores, present], axis=1)
    expected = [average_precision_score(present[:, c], scores[:, c]) for c in range(3)]
    assert list(score.parts(rows).values()) == pytest.approx(expected)
    assert score.metrics(rows) == {"mAP": score.value(rows), **{f"AP/{n}": v for n, v in score.parts(rows).items()}}
    counts = source.multinomial(30, [1 / 30] * 30, size=4)
    slow = [[score.value(np.repeat(side, count, axis=0)) for side in (rows, rows[::-1])] for count in counts]
    assert score.over(np.stack([rows, rows[::-1]]), counts) == pytest.approx(np.array(slow))


def test_a_class_without_a_positive_is_left_out() -> None:
    score = MeanAveragePrecision(class_names=["a", "b"])
    rows = np.array([[0.9, 0.1, 1, 0], [0.2, 0.5, 0, 0]])
    assert score.value(rows) == 1.0
    assert set(score.parts(rows)) == {"a"}
    assert score.metrics(rows[1:]) == {}


def test_ignored_pixels_show_no_class() -> None:
    mask = torch.tensor([[0, 255], [2, 2]])
    assert present_classes(mask, 3, 255).tolist() == [1.0, 0.0, 1.0]


def data(root: Path) -> Path:
    """Images of one or two of three classes, each in its colour."""
    import json

    source = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for i in range(count):
            pair = source.permutation(3)[: 1 + i % 2]
            write_item(
                root, split, f"{split}{i}", np.repeat(source.choice(pair, (2, 4)), 8, 0).repeat(8, 1).astype(np.uint8)
            )
    (root / "classes.json").write_text(json.dumps({"names": NAMES}))
    return root


@pytest.mark.parametrize("source", ["frozen", "finetuned", "segmentation"])
def test_every_source_finds_classes_that_the_colours_show(tmp_path: Path, source: Source) -> None:
    training = {"steps": 40, "batch_size": 8, "lr": 3e-3, "warmup_steps": 5}
    decoder = LinearDecoderOptions(size_px=16, crop_px=16, scale=(1.0, 1.0), jitter=False, **training)
    config = MultiLabelOptions(
        source=source,
        size_px=16,
        lr=1e-2,
        batch_size=8,
        training=TrainingOptions(**training),
        decoder=decoder,
    )
    root = data(tmp_path)
    train, test = (SegmentationFolder(root, split) for split in ("train", "val"))
    protocol = MultiLabel(config, FeatureExtractor(tiny_backbone()), train, test)
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    chance = float(np.mean([np.mean(found.rows[:, 3 + c]) for c in range(3)]))
    assert found.metrics["mAP"] > chance + 0.2
    assert np.array_equal(protocol.run(0).rows, found.rows)


def test_one_training_image_is_refused(tmp_path: Path) -> None:
    root = data(tmp_path)
    train, test = (SegmentationFolder(root, split) for split in ("train", "val"))
    part = TrainingPart(1 / 24)
    with pytest.raises(RequestError, match="at least two training images"):
        MultiLabel(MultiLabelOptions(), FeatureExtractor(tiny_backbone()), train, test, part=part).check()
