# SPDX-License-Identifier: Apache-2.0
"""Variance of features under crops and noise, with networks whose variance is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.data.labelled.pictures import PictureFolder
from rekindle.evaluation.description.options import VarianceOptions
from rekindle.evaluation.description.variance import METRICS, Variance, mean_variance
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from tests.evaluation.toy import PATCH, ColourExtractor, tiny_backbone, write_noise

CLASS, PATCHES = METRICS["class"], METRICS["patch"]
SMALL = {"size_px": 32, "align_px": 8, "num_views": 8, "num_images": 2, "batch_size": 5}


class Known(nn.Module):
    """Tokens by rule: constant, the place of the patch, a sign by the order of the views, or the pixels' mean."""

    def __init__(self, rule: str, scale: float = 1.0) -> None:
        super().__init__()
        self.rule, self.scale, self.seen = rule, scale, 0

    def forward(self, pixels: Tensor) -> Tokens:
        side = pixels.shape[-1] // PATCH
        patches = nn.functional.avg_pool2d(pixels, PATCH).permute(0, 2, 3, 1)
        if self.rule == "constant":
            patches = torch.ones_like(patches)
        if self.rule == "place":
            patches = torch.arange(side * side).float().reshape(1, side, side, 1).expand(len(pixels), -1, -1, 3)
        if self.rule == "sign":
            number = torch.arange(self.seen, self.seen + len(pixels))
            patches = (1 - 2.0 * (number % 2))[:, None, None, None].expand_as(patches)
            self.seen += len(pixels)
        return Tokens(self.scale * patches.mean(dim=(1, 2)), pixels.new_zeros(len(pixels), 0, 3), self.scale * patches)


class KnownExtractor(ColourExtractor):
    def __init__(self, network: Known, has_cls: bool = True) -> None:
        super().__init__()
        self.has_cls = has_cls
        self._known, self._bf16 = network, False
        self._mean, self._std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)

    def trainable_copy(self) -> Backbone:
        return cast(Backbone, self._known)


def outcome(root: Path, extractor: FeatureExtractor, seed: int = 0, **options: Any) -> Outcome:
    made = Variance(VarianceOptions(**{**SMALL, **options}), extractor, None, PictureFolder(root, "val"))
    made.check()
    made.prepare()
    return made.run(seed)


def test_merged_variance_is_that_of_all_rows() -> None:
    rows = torch.randn(37, 4, 3, generator=torch.Generator().manual_seed(0)) + 100.0
    expected = rows.double().var(dim=0, correction=0).mean()
    for size in (1, 5, 37):
        assert mean_variance(torch.split(rows, size)) == pytest.approx(float(expected), rel=1e-9)
    signs = torch.tensor([1.0, -1.0] * 8)[:, None]
    assert mean_variance(torch.split(signs, 3)) == pytest.approx(1.0)


@pytest.mark.parametrize(("rule", "expected"), [("constant", 0.0), ("sign", 1.0)])
def test_worked_cases(tmp_path: Path, rule: str, expected: float) -> None:
    found = outcome(write_noise(tmp_path), KnownExtractor(Known(rule)))
    assert found.metrics == {PATCHES: pytest.approx(expected), CLASS: pytest.approx(expected)}


def test_places_do_not_vary(tmp_path: Path) -> None:
    """The place of a patch is the same in every noised view."""
    assert outcome(write_noise(tmp_path), KnownExtractor(Known("place"))).metrics[PATCHES] == 0.0


def test_variance_grows_with_the_square_of_the_features(tmp_path: Path) -> None:
    root = write_noise(tmp_path)
    one, three = (outcome(root, KnownExtractor(Known("mean", scale))).metrics for scale in (1.0, 3.0))
    assert one[PATCHES] > 1e-3 and one[CLASS] > 1e-4
    assert three[PATCHES] == pytest.approx(9 * one[PATCHES], rel=1e-5)
    assert three[CLASS] == pytest.approx(9 * one[CLASS], rel=1e-5)


def test_noise_covers_the_share_that_was_asked_for(tmp_path: Path) -> None:
    root = write_noise(tmp_path)
    config = VarianceOptions(**{**SMALL, "coverage": 0.4})
    made = Variance(config, KnownExtractor(Known("mean")), None, PictureFolder(root, "val"))
    blank = torch.zeros(1, 16, 3, 32, 32)
    noised = made._noised(blank, seed=0, number=0)
    shares = (noised != 0).all(dim=2).float().mean(dim=(2, 3))[0]
    assert (shares >= 0.4).all() and (shares < 0.4 + 9 / 16).all()
    assert not torch.equal(noised[0, 0], noised[0, 1])
    assert not torch.equal(noised, made._noised(blank, seed=0, number=1))


def test_a_real_network_draws_by_its_seed_on_fixed_images(tmp_path: Path) -> None:
    root, network = write_noise(tmp_path), FeatureExtractor(tiny_backbone())
    first, again, other = (outcome(root, network, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)
    assert first.items == other.items and len(first.items) == 2
    assert first.counts == {"images": 2, "views": 8}
    assert first.score.name == PATCHES and not first.score.higher_is_better and not first.score.is_fraction
    assert outcome(root, network, levels=("class",)).score.name == CLASS


def test_without_a_class_token_patches_alone_are_measured(tmp_path: Path) -> None:
    root = write_noise(tmp_path)
    with pytest.raises(RequestError, match=r"no class token; use --variance\.levels patch"):
        outcome(root, KnownExtractor(Known("mean"), has_cls=False))
    patches = outcome(root, KnownExtractor(Known("mean"), has_cls=False), levels=("patch",))
    assert list(patches.metrics) == [PATCHES]
    with pytest.raises(RequestError, match="size_px = 30 is not a multiple"):
        outcome(root, FeatureExtractor(tiny_backbone()), size_px=30)
    with pytest.raises(RequestError, match=r"align_px = 12.*do not tile"):
        outcome(root, FeatureExtractor(tiny_backbone()), align_px=12)
    with pytest.raises(RequestError, match=r"coverage = 0\.9.*raise max_block"):
        outcome(root, FeatureExtractor(tiny_backbone()), coverage=0.9, max_block=0.1)


@pytest.mark.parametrize("wrong", [{"scale": (0.5, 0.2)}, {"scale": (0.0, 1.0)}, {"levels": ("patch", "patch")}])
def test_options_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be a range|names one twice"):
        VarianceOptions(**wrong)
