# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.adapters.saved import model_hash
from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.segmentation.linear_seg import LinearHead, LinearSeg, four_blocks, linear_rate
from rekindle.evaluation.segmentation.options import LinearSegOptions
from tests.evaluation.toy import ColourExtractor, stripes, tiny_backbone, write_data, write_item, write_noise

QUICK = LinearSegOptions(size_px=16, steps=150, batch_size=2, lr=0.05, warmup_steps=5, loss_stride=1)


def protocol(root: Path, extractor: FeatureExtractor, config: LinearSegOptions = QUICK) -> LinearSeg:
    train, test = SegmentationFolder(root, "train"), SegmentationFolder(root, "val")
    return LinearSeg(config, extractor, train, test)


def outcome(root: Path, extractor: FeatureExtractor, config: LinearSegOptions = QUICK) -> Outcome:
    made = protocol(root, extractor, config)
    made.check()
    made.prepare()
    return made.run(0)


def test_rate_follows_the_paper() -> None:
    def rate(step: int) -> float:
        return linear_rate(step, peak=1e-4, steps=40_000, warmup_steps=1500)

    assert rate(0) == pytest.approx(1e-10)
    assert rate(1500) == pytest.approx(1e-4 * (1 - 1500 / 40_000))
    assert rate(20_000) == pytest.approx(5e-5)
    assert rate(40_000) == 0.0


def test_blocks_scale_with_depth() -> None:
    assert four_blocks(12) == (5, 7, 9, 11)
    assert four_blocks(24) == (11, 15, 19, 23)
    assert four_blocks(2) == (0, 0, 1, 1)


def test_head_is_batch_norm_and_one_linear_map() -> None:
    head = LinearHead(4 * 768, 150)
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"norm", "classifier"}
    assert sum(p.numel() for p in head.parameters()) == 467_094


def test_class_features_on_stripes_reach_one(tmp_path: Path) -> None:
    found = outcome(write_data(tmp_path), ColourExtractor())
    assert found.metrics["mIoU"] == pytest.approx(1.0)
    assert found.counts["pixels"] == 3 * 48 * 16
    assert found.counts["train_images"] == 3


@pytest.mark.parametrize("options", [{"flip_augment": True}, {"loss_stride": 4}])
def test_variants_reach_one_too(tmp_path: Path, options: dict[str, object]) -> None:
    found = outcome(write_data(tmp_path), ColourExtractor(), QUICK.model_copy(update=options))
    assert found.metrics["mIoU"] == pytest.approx(1.0)


def test_images_of_several_sizes_and_ignored_pixels(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    mask = stripes(72, 32)
    mask[:, :24] = 255
    write_item(root, "train", "wide", mask)
    write_item(root, "val", "wide", mask)
    found = outcome(root, ColourExtractor(), QUICK.model_copy(update={"size_px": 32}))
    assert found.rows[-1, 3:6].sum() == 48 * 32
    assert found.metrics["mIoU"] > 0.9


def test_backbone_stays_as_it_is_and_a_seed_repeats(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    before = model_hash(backbone)
    made = protocol(write_noise(tmp_path), FeatureExtractor(backbone), QUICK.model_copy(update={"steps": 10}))
    made.prepare()
    torch.manual_seed(1)
    first = made.run(0).rows
    torch.manual_seed(2)
    assert np.array_equal(made.run(0).rows, first)
    assert not np.array_equal(made.run(1).rows, first)
    assert model_hash(backbone) == before
    assert all(p.grad is None for p in backbone.parameters())


def test_too_large_a_cache_is_refused_before_any_feature(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"max_cache_gib": 1e-6})
    with pytest.raises(RequestError, match=r"linear_seg\.max_cache_gib = 1e-06; lower linear_seg\.size_px = 16"):
        protocol(write_data(tmp_path), ColourExtractor(), config).check()


def test_warmup_longer_than_training_is_refused(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"steps": 5})
    with pytest.raises(RequestError, match=r"warmup_steps = 5 must be less .*; lower the former, or raise the latter"):
        protocol(write_data(tmp_path), ColourExtractor(), config).check()


@pytest.mark.slow
def test_camvid(real_data: Path) -> None:
    train = SegmentationFolder(real_data / "camvid", "train")
    train.items = train.items[::20]
    made = LinearSeg(LinearSegOptions(size_px=96, steps=200), FeatureExtractor(tiny_backbone()), train, train)
    made.check()
    made.prepare()
    assert made.run(0).metrics["aAcc"] > 0.4
