# SPDX-License-Identifier: Apache-2.0
"""Depth from frozen features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.data.labelled.depth import DepthFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.segmentation.depth import METRICS, Depth, depth_sums
from rekindle.evaluation.segmentation.options import DepthOptions
from tests.data.labelled.test_depth import write_depth
from tests.evaluation.toy import tiny_backbone

QUICK = DepthOptions(
    steps=250, batch_size=8, lr=3e-4, warmup_steps=5, size_px=16, channels=16, projections=(4, 8, 8, 8)
)


def measured(predicted: list[float], truth: list[float]) -> dict[str, float]:
    rows = np.array([depth_sums(torch.tensor([predicted]), torch.tensor([truth]))])
    return Means(headline="AbsRel", names=METRICS, better="lower").metrics(rows)


def test_worked_case() -> None:
    """LOCA, property 22."""
    found = measured([1.05, 2.3, 8.0], [1.0, 2.0, 4.0])
    assert found["AbsRel"] == pytest.approx(0.4)
    assert found["d<1.1"] == pytest.approx(1 / 3)
    assert found["d<1.25"] == found["d<1.5625"] == pytest.approx(2 / 3)
    log = np.log1p([1.05, 2.3, 8.0]) - np.log1p([1.0, 2.0, 4.0])
    assert found["MSE (log²)"] == pytest.approx(float(np.mean(log**2)))
    perfect = measured([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert list(perfect.values()) == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_unknown_pixels_do_not_count() -> None:
    assert measured([1.05, 9.0], [1.0, 0.0]) == measured([1.05], [1.0])


def folder(root: Path) -> Path:
    """Columns of depth that the brightness gives away."""
    source = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            columns = np.repeat(source.uniform(0.5, 8.0, 6), 8)
            write_depth(root, split, f"{split}{i}", np.tile(columns, (16, 1)))
    return root


def made(root: Path, config: DepthOptions = QUICK) -> Depth:
    return Depth(config, FeatureExtractor(tiny_backbone()), DepthFolder(root, "train"), DepthFolder(root, "val"))


def test_it_learns_depth_that_the_image_shows(tmp_path: Path) -> None:
    protocol = made(folder(tmp_path))
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    assert not found.score.higher_is_better
    truths = np.concatenate([protocol.test.read(i)[1].numpy().ravel() for i in range(4)])
    middle = np.expm1(np.log1p(truths).mean())
    constant = float(np.mean((np.log1p(middle) - np.log1p(truths)) ** 2))
    assert found.metrics["MSE (log²)"] < 0.5 * constant
    assert found.counts == {"images": 4, "train_images": 12, "pixels": 4 * 16 * 48}


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    protocol = made(folder(tmp_path), QUICK.model_copy(update={"steps": 20}))
    protocol.check()
    protocol.prepare()
    first = protocol.run(0).rows
    assert np.array_equal(protocol.run(0).rows, first) and not np.array_equal(protocol.run(1).rows, first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 250}, r"depth\.warmup_steps = 250 must be less .*; lower the former, or raise the latter"),
        ({"max_cache_gib": 1e-6}, r"depth\.max_cache_gib"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    config: Options = QUICK.model_copy(update=change)
    assert isinstance(config, DepthOptions)
    with pytest.raises(RequestError, match=message):
        made(folder(tmp_path), config).check()
