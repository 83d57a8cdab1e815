# SPDX-License-Identifier: Apache-2.0
"""The page about the verdict says what the code does: its words, its limits, and sentences as they are told."""

from __future__ import annotations

from typing import get_args

import pytest

from rekindle.evaluation.verdict.judging import FEWEST, MOST_UNDEFINED, Joint, Judged, Words
from rekindle.evaluation.verdict.overall import OverallWord
from rekindle.evaluation.verdict.telling import told
from rekindle.measuring.options import CompareOptions
from tests.documents.reading import ROOT

TEXT = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())


@pytest.mark.parametrize("word", sorted({*get_args(Words), *get_args(OverallWord)}))
def test_every_word_is_explained(word: str) -> None:
    assert f"**{word}**" in PAGE.partition("## What the interval covers")[0]


def test_the_limits_are_those_of_the_code() -> None:
    assert f"fewer than {FEWEST['items']} items or {FEWEST['groups']} groups" in PAGE
    assert f"more than {100 * MOST_UNDEFINED:g} % of the resamples define no value" in PAGE
    assert f"computed again {CompareOptions.model_fields['resamples'].default:,} times" in PAGE
    assert "(`--seeds`, three as it comes)" in PAGE and CompareOptions.model_fields["seeds"].default == 3


def test_the_sentences_that_it_shows_are_told_so() -> None:
    better = Judged(verdict="better", difference=0.021, low=0.008, high=0.034, level=0.95, rule="student")
    values = {"difference": 0.005, "low": -0.001, "high": 0.011, "smallest_effect": 0.012, "units_for_half": 203}
    undecided = better.model_copy(update={**values, "verdict": "no difference", "items": 52, "units": 52})
    assert told(better, "mIoU") in PAGE and told(undecided, "mIoU") in PAGE


def test_every_field_of_the_file_is_named() -> None:
    listed = TEXT.partition("## In files and programs")[2]
    fields = [*Judged.model_fields, *Joint.model_fields]
    assert [field for field in fields if f"`{field}`" not in listed] == []
