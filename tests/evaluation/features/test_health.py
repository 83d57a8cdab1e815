# SPDX-License-Identifier: Apache-2.0
"""Health figures against closed forms and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.health import (
    WITHIN,
    FeatureSample,
    alignment,
    attention_spread,
    effective_rank,
    gram_drift,
    health,
    lidar,
    rank_me,
    sample_features,
    uniformity,
)
from tests.evaluation.toy import tiny_backbone

SOURCE = torch.Generator().manual_seed(0)


def test_effective_rank_counts_equal_directions() -> None:
    assert float(effective_rank(torch.ones(7))) == pytest.approx(7.0)
    assert float(effective_rank(torch.tensor([3.0, 0.0, 0.0]))) == pytest.approx(1.0)
    p = np.array([0.7, 0.2, 0.1])
    assert float(effective_rank(torch.tensor(p) * 5)) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_rank_of_features_is_that_of_their_directions() -> None:
    rows = torch.linalg.qr(torch.randn(20, 6, generator=SOURCE))[0]
    assert float(rank_me(rows)) == pytest.approx(6.0, rel=1e-5)
    assert float(rank_me(rows[:, :1] @ torch.randn(1, 6, generator=SOURCE))) == pytest.approx(1.0, abs=1e-4)


def test_lidar_is_the_generalised_eigenvalue_problem() -> None:
    features = torch.randn(12, 5, 4, generator=SOURCE) + 2 * torch.randn(12, 1, 4, generator=SOURCE)
    rows = features.double().numpy()
    means = rows.mean(axis=1)
    between = np.cov(means.T)
    within = sum(np.outer(v - m, v - m) for own, m in zip(rows, means, strict=True) for v in own) / (12 * 4)
    values = eigh(between, within + WITHIN * np.eye(4), eigvals_only=True)
    p = values / values.sum()
    assert float(lidar(features)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_alignment_and_uniformity_equal_loops() -> None:
    a, b = torch.randn(2, 9, 5, generator=SOURCE)
    unit = [(x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (a, b)]
    assert float(alignment(a, b)) == pytest.approx(np.mean([((x - y) ** 2).sum() for x, y in zip(*unit, strict=True)]))
    pairs = [np.exp(-2 * ((unit[0][i] - unit[0][j]) ** 2).sum()) for i in range(9) for j in range(i)]
    assert float(uniformity(a)) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    assert float(alignment(a, 3 * a)) == pytest.approx(0.0, abs=1e-10)


def test_drift_is_blind_to_rotations_and_sees_other_changes() -> None:
    patches = torch.randn(3, 10, 6, generator=SOURCE)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=SOURCE))[0]
    assert float(gram_drift(patches @ turn, patches)) == pytest.approx(0.0, abs=1e-5)
    assert float(gram_drift(torch.ones_like(patches), patches)) > 0.5


def test_attention_everywhere_alike_is_one() -> None:
    assert float(attention_spread(torch.full((2, 3, 16), 1 / 16))) == pytest.approx(1.0)
    assert float(attention_spread(torch.eye(16)[None, :3])) == pytest.approx(0.0)


def test_a_collapsed_network_shows() -> None:
    rows = torch.randn(10, 2, 8, generator=SOURCE)
    fine = FeatureSample(rows, torch.randn(10, 16, 8, generator=SOURCE), None)
    flat = FeatureSample(torch.ones(10, 2, 8) + 1e-3 * rows, fine.patches[:, :, :1].expand(-1, -1, 8), None)
    good, bad = health(fine), health(flat, fine)
    assert bad["RankMe image (dimensions)"] < 1.2 < good["RankMe image (dimensions)"]
    assert bad["RankMe patch (dimensions)"] < 1.2
    assert bad["uniformity (log)"] > good["uniformity (log)"]
    assert bad["Gram drift"] > 0.1 and bad["CKA to base"] < 1.0
    assert "attention spread" not in good and "Gram drift" not in good


def test_a_look_is_at_every_view_and_at_the_attention() -> None:
    backbone = tiny_backbone()
    views = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=SOURCE).to(torch.uint8)
    found = sample_features(FeatureExtractor(backbone), list(views))
    assert found.images.shape == (4, 2, 16)
    direct = FeatureExtractor(backbone).extract(views[1])[0]
    assert direct.cls is not None
    torch.testing.assert_close(found.images[:, 1], direct.cls)
    assert found.attention is not None
    assert found.attention.shape == (4, 2, 16)
    assert set(health(found, found)) >= {"LiDAR patch (dimensions)", "attention spread", "CKA to base"}
