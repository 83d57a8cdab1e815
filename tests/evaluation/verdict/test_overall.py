# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rekindle.evaluation.verdict.judging import Joint, Words
from rekindle.evaluation.verdict.overall import Overall, overall


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["better", "no difference"], "better"),
        (["worse", "no difference", "different"], "worse"),
        (["better", "worse"], "mixed"),
        (["better", "equivalent", "cannot judge"], "better"),
        (["equivalent", "equivalent", "different"], "equivalent"),
        (["equivalent", "no difference"], "no difference"),
        (["equivalent", "cannot judge"], "no difference"),
        (["cannot judge", "cannot judge"], "cannot judge"),
        (["cannot judge", "different"], "cannot judge"),
        (["cannot judge", "no difference"], "no difference"),
        (["no difference", "different"], "no difference"),
        ([], "no difference"),
    ],
)
def test_the_rule(words: list[Words], expected: str) -> None:
    assert overall({f"p{i}": word for i, word in enumerate(words)}, {}, 0.95).verdict == expected


def test_joint_words_win_over_those_of_single_looks() -> None:
    wide = Joint(verdict="no difference", low=-0.1, high=0.2, level=0.99, looks=2)
    sure = Joint(verdict="worse", low=-0.3, high=-0.1, level=0.99, looks=2)
    found = overall({"fpn": "better", "knn": "worse", "cka": "different"}, {"fpn": wide, "knn": sure}, 0.95)
    assert (found.verdict, found.worse, found.undecided, found.better) == ("worse", ["knn"], ["fpn"], [])
    assert found.told == "worse: worse in knn; no difference in fpn (2 looks, 95 % together)"


def test_it_names_what_it_rests_on() -> None:
    words: dict[str, Words] = {"fpn": "better", "knn": "equivalent", "video": "cannot judge", "cka": "different"}
    found = overall(words, {}, 0.9)
    assert (found.better, found.equivalent, found.unjudged) == (["fpn"], ["knn"], ["video"])
    assert found.told == "better: better in fpn; equivalent in knn; cannot judge in video (2 looks, 90 % together)"
    assert overall({"fpn": "better"}, {}, 0.95).told == "better: better in fpn (95 %)"
    assert overall({"fpn": "cannot judge"}, {}, 0.95).told == "cannot judge: cannot judge in fpn"


def test_one_of_before_says_that_its_intervals_were_each_on_their_own() -> None:
    stored = {"verdict": "better", "better": ["fpn"], "worse": [], "undecided": ["knn"], "level": 0.95}
    found = Overall.model_validate(stored | {"expected_by_chance": 0.1})
    assert found.told == (
        "better: better in fpn; no difference in knn (older rule: intervals at 95 % each, of which 0.1 would exclude zero by "
        "chance)"
    )
