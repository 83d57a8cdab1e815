# SPDX-License-Identifier: Apache-2.0
"""Clusters of patches and the classes that they are taken for."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.data.labelled.objects import open_objects
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.cluster_matching import majority, named_statistics, one_to_one
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.segmentation_metrics import class_iou
from rekindle.evaluation.segmentation.clustering import Clustering, fitted_centres, nearest_centre
from rekindle.evaluation.segmentation.options import ClusteringOptions
from tests.evaluation.toy import ColourExtractor, stripes, tiny_backbone, write_data, write_item, write_noise


def outcome(root: Path, extractor: FeatureExtractor | None = None, seed: int = 0, **options: Any) -> Outcome:
    config = ClusteringOptions(**{"size_px": 48, **options})
    made = Clustering(config, extractor or ColourExtractor(), None, open_objects(root, "val"))
    made.check()
    made.prepare()
    return made.run(seed)


def test_one_to_one_has_the_greatest_sum_of_ious_of_all_assignments() -> None:
    source = np.random.default_rng(0)
    for _ in range(20):
        confusion = source.integers(0, 50, (4, 3))
        best = max(
            float(np.nansum(class_iou(named_statistics(confusion[None], np.array(order))[0])))
            for order in set(permutations([0, 1, 2, -1]))
        )
        named = one_to_one(confusion)
        assert sorted(named.tolist()) == [-1, 0, 1, 2]
        assert np.nansum(class_iou(named_statistics(confusion[None], named)[0])) == pytest.approx(best)


def test_majority_lets_clusters_share_a_class() -> None:
    assert majority(np.array([[5, 1], [9, 2], [0, 0], [3, 4]])).tolist() == [0, 0, -1, 1]


def test_pixels_of_a_nameless_cluster_are_missed_and_predicted_as_nothing() -> None:
    """Class 0 has 10 pixels, of which 4 lie in a cluster without a name; class 1 is found with one pixel too many."""
    confusions = np.array([[[6, 0], [0, 7], [4, 0]], [[0, 0], [1, 0], [0, 0]]])
    statistics = named_statistics(confusions, np.array([0, 1, -1]))
    assert statistics.tolist() == [[[6, 7], [10, 7], [6, 7]], [[0, 0], [1, 0], [0, 1]]]
    assert class_iou(statistics.sum(axis=0)) == pytest.approx([6 / 11, 7 / 8])


def test_every_token_gets_the_nearest_centre() -> None:
    source = torch.Generator().manual_seed(0)
    tokens, centres = torch.randn(50, 6, generator=source), torch.randn(4, 6, generator=source)
    assert torch.equal(nearest_centre(tokens, centres), torch.cdist(tokens, centres).argmin(dim=1))


def test_orthogonal_groups_are_found(tmp_path: Path) -> None:
    tokens = torch.eye(5)[torch.arange(100) % 3]
    centres = fitted_centres(tokens, 3, restarts=3, seed=0)
    assert len(set(nearest_centre(tokens, centres).tolist())) == 3
    found = outcome(write_data(tmp_path))
    assert found.metrics["clustering mIoU"] == 1.0
    assert found.metrics["purity"] == 1.0
    assert found.counts == {"images": 3, "clusters": 3, "pixels": 3 * 48 * 48}


def test_clusters_of_a_real_network_follow_the_seed(tmp_path: Path) -> None:
    root, network = write_noise(tmp_path), FeatureExtractor(tiny_backbone())
    first, again, other = (outcome(root, network, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)
    assert first.rows[:, 3:6].tolist() == other.rows[:, 3:6].tolist()  # label areas


def test_more_clusters_than_classes_are_named_by_majority(tmp_path: Path) -> None:
    root, network = write_noise(tmp_path), FeatureExtractor(tiny_backbone())
    many = outcome(root, network, num_clusters=20, naming="majority")
    one = outcome(root, network, num_clusters=20)
    assert many.counts["clusters"] == 20
    assert many.rows[:, 6:].sum() == many.counts["pixels"]  # every cluster has a class
    assert one.rows[:, 6:].sum() < one.counts["pixels"]  # only three do
    assert many.metrics["purity"] == pytest.approx(many.rows[:, :3].sum() / many.counts["pixels"])


def test_ignored_pixels_do_not_count(tmp_path: Path) -> None:
    root = write_data(tmp_path, num_test=0)
    mask = stripes()
    mask[:, :24] = 255
    write_item(root, "val", "half", mask)
    assert outcome(root, num_clusters=4).counts["pixels"] == 48 * 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 2}, "num_clusters = 2 is less than the 3 classes"),
        ({"num_clusters": 200}, "108 tokens cannot make 200 clusters"),
        ({"max_tokens": 2}, "2 tokens cannot make 3 clusters"),
        ({"size_px": 50}, "use 48 or 56"),
    ],
)
def test_requests_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        outcome(write_data(tmp_path), **options)


def test_classes_that_nothing_holds_are_left_out_or_zero() -> None:
    row = np.array([[4, 0, 0, 4, 4, 0, 8, 0, 0]])
    skip, zero = (MeanIou(class_names=["road", "sky", "never"], absent=kind) for kind in ("skip", "zero"))
    assert skip.value(row) == 0.25
    assert zero.value(row) == pytest.approx(0.5 / 3)
    assert zero.metrics(row)["mIoU"] == zero.value(row)
