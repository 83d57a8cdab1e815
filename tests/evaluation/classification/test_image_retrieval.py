# SPDX-License-Identifier: Apache-2.0
"""Retrieval by the rules of revisited Oxford and Paris."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.labelled.retrieval import Query, RetrievalFolder
from rekindle.evaluation.classification.image_retrieval import (
    ImageRetrieval,
    average_precision,
    cleaned_ranks,
    positives_and_junk,
    precision_at,
)
from rekindle.evaluation.classification.options import ImageRetrievalOptions
from rekindle.evaluation.features.extractors import FeatureExtractor
from tests.data.labelled.test_retrieval import write_retrieval
from tests.evaluation.pictures import ClassTokenExtractor, PatchOnlyExtractor, save
from tests.evaluation.toy import tiny_backbone

OPTIONS = ImageRetrievalOptions(size_px=16)


@pytest.mark.parametrize(
    ("ranks", "positives", "expected"),
    [([0, 1], 2, 1.0), ([0, 2], 2, 0.79167), ([1], 1, 0.25), ([0, 1, 4], 4, 0.6375)],
)
def test_average_precision_of_the_worked_cases(ranks: list[int], positives: int, expected: float) -> None:
    """MMC, E6 and property 17."""
    assert average_precision(ranks, positives) == pytest.approx(expected, abs=5e-6)


def test_junk_is_taken_out_before_ranks_are_read() -> None:
    """MMC, E6: (junk, positive, positive) is perfect."""
    ranks = cleaned_ranks(np.array([7, 3, 5, 1]), {3, 5}, {7})
    assert ranks == [0, 1]
    assert average_precision(ranks, 2) == 1.0


def test_levels_count_and_discard_as_published() -> None:
    query = Query(easy=(1,), hard=(2,), junk=(3,), box=None)
    assert positives_and_junk(query, "easy") == ({1}, {2, 3})
    assert positives_and_junk(query, "medium") == ({1, 2}, {3})
    assert positives_and_junk(query, "hard") == ({2}, {1, 3})


def test_precision_reaches_no_farther_than_the_last_positive() -> None:
    assert precision_at([0, 2], 1) == 1.0
    assert precision_at([0, 2], 5) == pytest.approx(2 / 3)
    assert precision_at([0, 2, 9], 5) == pytest.approx(2 / 5)


def shades(root: Path, truth: list[dict[str, Any]], names: list[str], values: list[tuple[int, int, int]]) -> Path:
    """A set whose first images are the database and whose last are the queries, each of one colour."""
    count = len(truth)
    lists = {"imlist": names[:-count], "qimlist": names[-count:], "gnd": truth}
    write_retrieval(root, lists)
    for name, value in zip(names, values, strict=True):
        save(root / "toy" / "jpg" / f"{name}.jpg", np.broadcast_to(np.array(value, np.uint8), (16, 24, 3)).copy())
    return root


RED, DARK_RED, BROWN, BLUE = (250, 10, 10), (240, 30, 20), (200, 120, 60), (10, 10, 250)


def made(
    root: Path, config: ImageRetrievalOptions = OPTIONS, extractor: FeatureExtractor | None = None
) -> ImageRetrieval:
    return ImageRetrieval(config, extractor or ClassTokenExtractor(), None, RetrievalFolder(root, "toy"))


def outcome(protocol: ImageRetrieval) -> dict[str, float]:
    protocol.check()
    protocol.prepare()
    return protocol.run(0).metrics


def test_metrics_of_a_ranking_that_is_known(tmp_path: Path) -> None:
    """The red query ranks dark red, brown, blue; the blue one the other way round."""
    truth = [{"easy": [0], "hard": [2], "junk": [1]}, {"easy": [2], "hard": [], "junk": []}]
    root = shades(tmp_path, truth, ["a", "b", "c", "q", "r"], [DARK_RED, BROWN, BLUE, RED, BLUE])
    found = outcome(made(root))
    assert next(iter(found)) == "mAP medium"
    assert found["mAP medium"] == 1.0  # brown is junk, so blue comes second of two
    assert found["mAP easy"] == 1.0
    assert found["mAP hard"] == 1.0  # the second query has no hard positive and is left out
    assert found["mP@1 medium"] == 1.0
    truth[0] = {"easy": [0], "hard": [2], "junk": []}
    found = outcome(made(shades(tmp_path, truth, ["a", "b", "c", "q", "r"], [DARK_RED, BROWN, BLUE, RED, BLUE])))
    assert found["mAP medium"] == pytest.approx((0.79167 + 1) / 2, abs=1e-5)
    assert found["mAP hard"] == pytest.approx(0.25)
    assert found["mP@5 medium"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_query_without_positives_does_not_count(tmp_path: Path) -> None:
    truth = [{"easy": [1], "hard": [], "junk": []}, {"easy": [], "hard": [], "junk": [0]}]
    root = shades(tmp_path, truth, ["a", "b", "q", "r"], [DARK_RED, BLUE, RED, BLUE])
    protocol = made(root)
    assert outcome(protocol)["mAP medium"] == pytest.approx(0.25)
    assert "mAP hard" not in protocol.run(0).metrics
    score, rows = protocol.run(0).score, protocol.run(0).rows
    draws = score.over(rows[None], np.array([[1, 1], [2, 0], [0, 2]]))[:, 0]
    assert draws[:2].tolist() == [0.25, 0.25] and np.isnan(draws[2])
    with pytest.raises(RequestError, match=r"no query has a positive at image_retrieval\.level = hard"):
        made(root, ImageRetrievalOptions(size_px=16, level="hard")).check()


def test_cropped_queries_are_their_box(tmp_path: Path) -> None:
    truth = [{"easy": [0], "hard": [], "junk": [], "bbx": [0, 0, 8, 16]}]
    root = shades(tmp_path, truth, ["a", "b", "q"], [RED, BLUE, BLUE])
    query = np.broadcast_to(np.array(BLUE, np.uint8), (16, 24, 3)).copy()
    query[:, :8] = RED
    save(root / "toy" / "jpg" / "q.jpg", query)
    small = ImageRetrievalOptions(size_px=24)
    assert outcome(made(root, small))["mAP medium"] == pytest.approx(0.25)
    assert outcome(made(root, small.model_copy(update={"crop_query": True})))["mAP medium"] == 1.0
    with pytest.raises(RequestError, match="not every query has a box"):
        (tmp_path / "b").mkdir()
        truth[0].pop("bbx")
        made(
            shades(tmp_path / "b", truth, ["a", "q"], [RED, RED]), OPTIONS.model_copy(update={"crop_query": True})
        ).check()


class SizeExtractor(ClassTokenExtractor):
    """Remembers the sizes that it was given; the class token says which it was."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def extract(self, images: Tensor, blocks: Any = (-1,)) -> list[Any]:
        self.sizes.append((images.shape[-2], images.shape[-1]))
        found = super().extract(images, blocks)
        one_hot = torch.eye(3)[len(self.sizes) % 3].expand(len(images), 3)
        return [type(t)(one_hot, t.registers, t.patches) for t in found]


def test_images_keep_their_shape_and_scales_are_averaged(tmp_path: Path) -> None:
    """Longest side 48 and its half of a 48 x 32 image: 48 x 32 and 24 x 16, cut to multiples of 8."""
    root = shades(tmp_path, [{"easy": [0], "hard": [], "junk": []}], ["a", "q"], [RED, RED])
    for name in ("a", "q"):
        save(root / "toy" / "jpg" / f"{name}.jpg", np.zeros((70, 100, 3), np.uint8))
    extractor = SizeExtractor()
    protocol = made(root, ImageRetrievalOptions(size_px=48, scales=(1.0, 0.5, 0.1)), extractor)
    protocol.prepare()
    assert extractor.sizes == [(32, 48), (16, 24), (8, 8)] * 2
    assert torch.allclose(protocol._queries, torch.full((1, 3), 3**-0.5))


def test_smaller_images_are_not_enlarged(tmp_path: Path) -> None:
    root = shades(tmp_path, [{"easy": [0], "hard": [], "junk": []}], ["a", "q"], [RED, RED])
    extractor = SizeExtractor()
    made(root, ImageRetrievalOptions(size_px=640), extractor).prepare()
    assert extractor.sizes == [(16, 24)] * 2


@pytest.mark.parametrize("change", [{"scales": (1.0, 0.0)}, {"ranks": (0,)}])
def test_scales_and_ranks_must_be_above_zero(tmp_path: Path, change: dict[str, object]) -> None:
    root = shades(tmp_path, [{"easy": [0], "hard": [], "junk": []}], ["a", "q"], [RED, RED])
    with pytest.raises(RequestError, match="must be above 0"):
        made(root, OPTIONS.model_copy(update=change)).check()
    with pytest.raises(RequestError, match=r"image_retrieval\.descriptor = cls needs a class token"):
        made(root, extractor=PatchOnlyExtractor()).check()


def test_a_real_network_runs(tmp_path: Path) -> None:
    root = shades(tmp_path, [{"easy": [0], "hard": [1], "junk": []}], ["a", "b", "q"], [RED, BLUE, RED])
    assert 0 < outcome(made(root, extractor=FeatureExtractor(tiny_backbone())))["mAP medium"] <= 1
