# SPDX-License-Identifier: Apache-2.0
"""Episodes with one labelled image per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.classification.one_shot import THRESHOLDS, OneShot, decisions, draw_episode
from rekindle.evaluation.classification.options import OneShotOptions
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.threshold_scores import FewShot
from tests.evaluation.pictures import ClassTokenExtractor, ConstantExtractor, write_classes

OPTIONS = OneShotOptions(episodes=20, queries=3, size_px=16)
SCORE = FewShot(thresholds=THRESHOLDS)


def test_supports_are_never_queries_and_classes_are_distinct() -> None:
    """MMC, property 16."""
    members = [torch.arange(10 * c, 10 * c + 10) for c in range(8)]
    for number in range(30):
        episode = draw_episode(members, OPTIONS, generator(0, "e", number))
        assert episode.supports.shape == (5, 1) and episode.queries.shape == (5, 3)
        everything = torch.cat([episode.supports, episode.queries], dim=1)
        assert len(set(everything.flatten().tolist())) == 20
        assert len(set((everything // 10)[:, 0].tolist())) == 5
        assert bool((everything // 10 == everything[:, :1] // 10).all())
        again = draw_episode(members, OPTIONS, generator(0, "e", number))
        assert torch.equal(again.queries, episode.queries)


def test_deciding_same_for_every_pair_gives_a_third() -> None:
    """MMC, property 16: 2 * 0.2 * 1 / 1.2."""
    rows = decisions(torch.full((4, 5, 15, 5, 1), 0.95), THRESHOLDS).numpy()
    found = SCORE.metrics(rows)
    assert found["F1"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(0.2)


def test_counts_equal_a_slow_loop() -> None:
    cosines = torch.rand(2, 3, 4, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    rows = decisions(cosines, THRESHOLDS)
    for episode, row in zip(cosines, rows.tolist(), strict=True):
        hit, positives = 0, 0
        true_same, same = [0] * 9, [0] * 9
        for way in range(3):
            for query in range(4):
                best = max((float(c), v) for v in range(3) for c in episode[way, query, v])[1]
                hit += best == way
                for v in range(3):
                    for c in episode[way, query, v].tolist():
                        positives += v == way
                        for i, t in enumerate(THRESHOLDS):
                            same[i] += c > t
                            true_same[i] += c > t and v == way
        assert row == [hit, 12, positives, *true_same, *same]


def test_the_best_threshold_is_one_for_all_episodes() -> None:
    cosines = torch.full((2, 2, 1, 2, 1), 0.25)
    cosines[0].diagonal(dim1=0, dim2=2).fill_(0.65)
    cosines[1].diagonal(dim1=0, dim2=2).fill_(0.35)
    found = SCORE.metrics(decisions(cosines, THRESHOLDS).numpy())
    assert found["F1"] == 1.0 and found["threshold (cosine)"] == pytest.approx(0.3)
    assert SCORE.higher_is_better and next(iter(found)) == "accuracy"
    by_f1 = FewShot(headline="F1", thresholds=THRESHOLDS)
    assert by_f1.value(decisions(cosines, THRESHOLDS).numpy()) == 1.0


def test_half_width_is_that_of_the_mean_over_episodes() -> None:
    rows = np.zeros((4, 3 + 18))
    rows[:, 0], rows[:, 1] = [10, 5, 10, 5], 10
    assert SCORE.metrics(rows)["accuracy-half-width"] == pytest.approx(1.96 * 0.25 / 2)


def made(root: Path, config: OneShotOptions = OPTIONS, extractor: FeatureExtractor | None = None) -> OneShot:
    return OneShot(config, extractor or ClassTokenExtractor(), None, ClassFolder(root, "val"))


def test_ideal_features_give_one_and_constant_ones_chance(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_test=4)
    ideal, constant = made(root), made(root, extractor=ConstantExtractor())
    for protocol in (ideal, constant):
        protocol.check()
        protocol.prepare()
    found = ideal.run(0)
    assert found.metrics["accuracy"] == 1.0
    assert len(found.items) == 20 and found.counts == {"images": 20, "classes": 5, "episodes": 20}
    assert constant.run(0).metrics["F1"] == pytest.approx(1 / 3)
    assert constant.run(0).metrics["accuracy"] == pytest.approx(0.2)


def test_a_seed_draws_its_episodes_whatever_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = made(write_classes(tmp_path, num_test=6), OPTIONS.model_copy(update={"descriptor": "pat"}))
    protocol.prepare()
    first = protocol.run(0).rows
    monkeypatch.setattr("rekindle.evaluation.classification.one_shot.CHUNK", 7)
    assert np.array_equal(protocol.run(0).rows, first)
    assert not np.array_equal(protocol.run(1).rows, first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"queries": 4},
            r"takes 1 \+ 4 images of a class.* amber, blue.*the fewest: 4\); lower one_shot\.queries to at most 3",
        ),
        ({"shots": 4}, r"the fewest: 4\); remove these classes"),
        ({"ways": 6}, r"5 classes are fewer than one_shot\.ways = 6"),
    ],
)
def test_too_few_images_or_classes_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(write_classes(tmp_path, num_test=4), OPTIONS.model_copy(update=change)).check()
