# SPDX-License-Identifier: Apache-2.0
"""Similarity of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.labelled.pictures import PictureFolder
from rekindle.evaluation.description.cka import HEADLINE, Cka, TokenSample
from rekindle.evaluation.description.options import CkaOptions
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.linear_cka import linear_cka
from tests.evaluation.pictures import PatchOnlyExtractor, write_classes
from tests.evaluation.toy import tiny_backbone


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_maps_that_keep_angles_change_nothing(shape: tuple[int, int]) -> None:
    """TEC, property 19."""
    x = noise(*shape)
    turn = torch.linalg.qr(noise(shape[1], shape[1], seed=1)).Q
    assert float(linear_cka(x, 3.0 * x @ turn + 5.0)) == pytest.approx(1.0)
    y = noise(shape[0], 9, seed=2)
    assert float(linear_cka(x, y)) == pytest.approx(float(linear_cka(y, x)))
    assert 0.0 < float(linear_cka(x, y)) < 1.0
    assert float(linear_cka(x, y)) == pytest.approx(float(linear_cka(2.0 * x @ turn, y)))


def test_worked_case() -> None:
    """TEC, property 19: rows (1,0), (0,1), (-1,0), (0,-1), the first column with both."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert float(linear_cka(rows[:, :1], rows)) == pytest.approx(0.7071, abs=5e-5)
    assert float(linear_cka(rows[:, :1], rows[:, 1:])) == 0.0
    assert float(linear_cka(rows, torch.ones(4, 3))) == 0.0


@pytest.mark.parametrize("shape", [(12, 4), (4, 12)])
def test_both_ways_to_compute_it_equal_the_alignment_of_kernels(shape: tuple[int, int]) -> None:
    """Oracle: the cosine of the centred kernel matrices, H K H, flattened."""
    x, y = noise(*shape), noise(shape[0], 3, seed=1)
    centring = torch.eye(shape[0], dtype=torch.float64) - 1 / shape[0]
    a, b = ((centring @ z @ z.T @ centring).flatten() for z in (x, y))
    assert float(linear_cka(x, y)) == pytest.approx(float(a @ b / (a.norm() * b.norm())))


def made(root: Path, config: CkaOptions, extractor: FeatureExtractor) -> Cka:
    return Cka(config, extractor, None, PictureFolder(root, "val"))


def test_blocks_are_compared_with_the_last_image_by_image(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_test=2, size=24)
    extractor = FeatureExtractor(tiny_backbone())
    protocol = made(root, CkaOptions(size_px=24, max_rows=10_000), extractor)
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    assert list(found.metrics) == [HEADLINE, "CKA of all tokens/block 1"]
    per_image = []
    everything: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(10):
        tokens = extractor.extract(protocol.test.image(index)[None], (0, 1))
        first, last = (t.patches[0].half().float().flatten(0, 1) for t in tokens)
        per_image.append(float(linear_cka(first, last)))
        everything[0].append(first)
        everything[1].append(last)
    assert found.rows[:, 0] == pytest.approx(np.array(per_image), abs=1e-4)
    assert found.metrics[HEADLINE] == pytest.approx(float(np.mean(per_image)), abs=1e-4)
    whole = float(linear_cka(torch.cat(everything[0]), torch.cat(everything[1])))
    assert found.metrics["CKA of all tokens/block 1"] == pytest.approx(whole, abs=1e-4)


def test_equal_blocks_are_alike(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_test=1, size=24)
    protocol = made(root, CkaOptions(size_px=24), PatchOnlyExtractor())
    protocol.prepare()
    found = protocol.run(0).metrics
    assert len(found) == 11 + 11
    assert list(found.values()) == pytest.approx([1.0] * 22)


def test_the_sample_is_the_same_for_every_model_and_as_large_for_every_image() -> None:
    tokens = torch.arange(50.0)[:, None]
    first, second = TokenSample(3, 10), TokenSample(3, 10)
    for image in range(3):
        first.add([tokens + 100 * image, tokens])
        second.add([tokens + 100 * image])
    assert torch.equal(first.rows()[0], second.rows()[0])
    assert len(first.rows()) == 2 and len(first.rows()[0]) == 9
    assert [int(((first.rows()[0] // 100) == i).sum()) for i in range(3)] == [3, 3, 3]
    with pytest.raises(RequestError, match=r"cka\.max_rows = 2 is less than one token for each of 3 images"):
        TokenSample(3, 2)


def test_a_model_of_one_block_is_refused(tmp_path: Path) -> None:
    extractor = PatchOnlyExtractor()
    extractor.depth = 1
    with pytest.raises(RequestError, match="this model has only one"):
        made(write_classes(tmp_path), CkaOptions(), extractor).check()
