# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rekindle.evaluation.scores.bootstrap import Words
from rekindle.evaluation.scores.overall import overall


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["better", "no difference"], "better"),
        (["worse", "no difference", "different"], "worse"),
        (["better", "worse"], "mixed"),
        (["no difference", "different"], "no difference"),
        ([], "no difference"),
    ],
)
def test_the_rule(words: list[Words], expected: str) -> None:
    assert overall({f"p{i}": word for i, word in enumerate(words)}, 0.95).verdict == expected


def test_it_names_what_it_rests_on_and_counts_judged_intervals_alone() -> None:
    found = overall({"fpn": "better", "knn": "worse", "video": "no difference", "cka": "different"}, 0.9)
    assert (found.better, found.worse, found.undecided) == (["fpn"], ["knn"], ["video"])
    assert found.expected_by_chance == pytest.approx(0.3)
    assert found.told == (
        "mixed; better in fpn; worse in knn (3 intervals at 90%, of which 0.3 would exclude zero by chance alone)"
    )
    assert overall({"fpn": "better"}, 0.95).told == "better; better in fpn (1 interval at 95%)"
