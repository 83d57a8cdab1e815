# SPDX-License-Identifier: Apache-2.0
"""Cosines within a class and across classes, and what their distributions have in common."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from rekindle.core.errors import RequestError
from rekindle.data.labelled.objects import open_objects
from rekindle.evaluation.description.options import SimilarityOptions
from rekindle.evaluation.description.similarity import Similarity, count_pairs
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.threshold_scores import Overlap
from tests.evaluation.segmentation.test_prompted_seg import square, write
from tests.evaluation.toy import ColourExtractor, tiny_backbone


def outcome(root: Path, extractor: FeatureExtractor | None = None, **options: Any) -> Outcome:
    config = SimilarityOptions(**{"size_px": 48, **options})
    made = Similarity(config, extractor or ColourExtractor(), None, open_objects(root, "val"))
    made.check()
    made.prepare()
    return made.run(0)


def row(intra: list[float], inter: list[float]) -> np.ndarray[Any, Any]:
    return np.array([[*intra, *inter, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("background", [None, 1])
def test_pairs_equal_a_slow_loop(background: int | None) -> None:
    source = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(30, 4, generator=source), dim=1)
    classes = torch.randint(0, 4, (30,), generator=source)
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(range(30), 2):
        if classes[i] == classes[j] == background:
            continue
        cosines[bool(classes[i] == classes[j])].append(float(tokens[i] @ tokens[j]))
    for found, expected in zip(
        count_pairs(tokens, classes, 10, background), (cosines[True], cosines[False]), strict=True
    ):
        assert found.histogram.tolist() == np.histogram(expected, 10, (-1, 1))[0].tolist()
        assert found.count == len(expected)
        assert found.total == pytest.approx(sum(expected), abs=1e-4)


@pytest.mark.parametrize(("bandwidth", "tolerance"), [(None, 1e-9), (0.02, 2e-2)])
def test_overlap_of_known_distributions(bandwidth: float | None, tolerance: float) -> None:
    """Equal ones share everything, disjoint ones nothing, densities of width 0.5 at a distance of 0.25 one half."""
    score = Overlap(num_bins=200, bandwidth=bandwidth)
    uniform = np.zeros(200)
    uniform[100:150] = 1 / 50
    for shift, expected in ((0, 1.0), (25, 0.5), (-25, 0.5), (-90, 0.0)):
        other = np.roll(uniform, shift)
        assert score.value(row(uniform.tolist(), other.tolist())) == pytest.approx(expected, abs=tolerance)
        assert score.value(row(other.tolist(), uniform.tolist())) == pytest.approx(expected, abs=tolerance)
    peaks = np.eye(200)
    assert score.value(row(peaks[199].tolist(), peaks[199].tolist())) == pytest.approx(1.0)
    assert 0.0 <= score.value(row(peaks[199].tolist(), peaks[0].tolist())) <= 1e-9


@pytest.mark.parametrize("bandwidth", [1e-6, 0.02, 0.5])
def test_kernels_lose_nothing_and_stay_finite(bandwidth: float) -> None:
    kernels = Overlap(num_bins=200, bandwidth=bandwidth)._kernels(bandwidth)
    assert np.allclose(kernels.sum(axis=1), 1.0) and (kernels >= 0).all()


def test_overlap_of_a_draw_is_that_of_its_items() -> None:
    source = np.random.default_rng(0)
    score = Overlap(num_bins=4)
    rows = source.random((2, 5, len(score.columns)))
    rows[..., -1] = 1.0
    counts = source.multinomial(5, [0.2] * 5, size=4)
    slow = [[score.value(np.repeat(side, count, axis=0)) for side in rows] for count in counts]
    assert score.over(rows, counts) == pytest.approx(np.array(slow))
    assert not score.higher_is_better and score.is_fraction
    assert score.metrics(np.zeros((2, len(score.columns)))) == {}


def test_worked_case(tmp_path: Path) -> None:
    """The toy of the prompted segmentation: cosine 1 within the object, 0.25 to the rest, nothing in common."""
    found = outcome(write(tmp_path, {"a": square()}, ["thing", "background"]), size_px=240)
    assert found.metrics["overlap"] == 0.0
    assert found.metrics["intra (cosine)"] == pytest.approx(1.0, abs=1e-5)
    assert found.metrics["inter (cosine)"] == pytest.approx(0.25, abs=5e-3)
    assert found.metrics["area/thing"] == pytest.approx(100 / 900)
    assert next(iter(found.metrics)) == "overlap"


def test_features_that_are_the_label_have_no_overlap_and_constant_ones_overlap_entirely(tmp_path: Path) -> None:
    names, masks = ["thing", "background", "other"], {"a": square(48, 16, 32)}
    masks["a"][:8] = 2
    one_hot = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert outcome(write(tmp_path / "labels", masks, names, one_hot)).metrics["overlap"] == 0.0
    assert outcome(write(tmp_path / "flat", masks, names, [(7, 7, 7)] * 3)).metrics["overlap"] == pytest.approx(1.0)


def test_background_is_in_pairs_across_classes_alone_unless_asked_otherwise(tmp_path: Path) -> None:
    mask = square(48, 16, 32)
    mask[:8, :16] = 2
    root = write(tmp_path, {"a": mask}, ["thing", "background", "other"], [(255, 0, 0), (64, 247, 0), (9, 9, 200)])
    network, bins = FeatureExtractor(tiny_backbone()), {"num_bins": 2}
    kinds = {kind: outcome(root, network, background=kind, **bins) for kind in ("inter_only", "class", "ignore")}
    sums = {kind: found.metrics["inter (cosine)"] for kind, found in kinds.items()}
    assert sums["inter_only"] == pytest.approx(sums["class"])
    assert sums["ignore"] != pytest.approx(sums["class"])
    assert kinds["inter_only"].metrics["intra (cosine)"] == pytest.approx(kinds["ignore"].metrics["intra (cosine)"])
    assert kinds["class"].metrics["intra (cosine)"] != pytest.approx(kinds["ignore"].metrics["intra (cosine)"])


def test_kernels_on_bins_are_a_density_estimate_of_the_pairs() -> None:
    """Against scipy's estimate with the same kernels on the cosines themselves, integrated over a fine grid."""
    source = np.random.default_rng(0)
    samples = [source.normal(0.3, 0.1, 3000).clip(-0.9, 0.9), source.normal(0.1, 0.2, 3000).clip(-0.9, 0.9)]
    grid = np.linspace(-1, 1, 2001)
    densities = [gaussian_kde(x, bw_method=0.02 / x.std(ddof=1))(grid) for x in samples]
    expected = float(np.minimum(*densities).sum() * (grid[1] - grid[0]))
    shares = [(np.histogram(x, 200, (-1, 1))[0] / len(x)).tolist() for x in samples]
    assert Overlap(num_bins=200, bandwidth=0.02).value(row(*shares)) == pytest.approx(expected, abs=2e-3)


def test_the_kind_of_overlap_is_an_option(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": square()}, ["thing", "background"])
    kinds = {kind: outcome(root, size_px=240, overlap=kind, bandwidth=0.5) for kind in ("histogram", "kde")}
    assert kinds["histogram"].metrics["overlap"] == 0.0 < 0.2 < kinds["kde"].metrics["overlap"]


def test_each_image_counts_equally_and_those_of_one_class_do_not(tmp_path: Path) -> None:
    masks = {"a": square(48, 16, 32), "b": square(48, 8, 40), "one": np.ones((48, 48), np.uint8)}
    root = write(tmp_path, masks, ["thing", "background"])
    found = outcome(root)
    assert found.items == ["a", "b"]
    assert found.counts == {"images": 2, "skipped_images": 1}
    assert found.rows[:, :200].sum(axis=1) == pytest.approx([1, 1])
    assert found.rows[:, 200:400].sum(axis=1) == pytest.approx([1, 1])
    for path in (root / "images" / "val" / "a.png", root / "images" / "val" / "b.png"):
        path.unlink()
    with pytest.raises(RequestError, match=r"no image has pairs"):
        outcome(root)
