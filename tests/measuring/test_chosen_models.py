# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare` of a model whose step labelled data chose: it is not judged on these, or its interval says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rekindle
from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import verdict_of
from rekindle.measuring.choosing import Choosing, choices_of, choosing_part, flattery
from rekindle.measuring.comparison import Comparison
from tests.evaluation.toy import save_tiny, write_noise

LOOKS = 10
SETTINGS: dict[str, Any] = {"dense-retrieval": {"size_px": 32, "memory_size": 30}, "similarity": {"size_px": 32}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a model, and 36 labelled images."""
    folder = tmp_path_factory.mktemp("chosen")
    write_noise(folder / "data", num_test=36)
    save_tiny(folder / "base", seed=1)
    save_tiny(folder / "model", seed=2)
    return folder


def mark(folder: Path, data: Path, share: float, looks: int = LOOKS) -> None:
    """Have a model say that a share of the items chose it; 0 for none."""
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description.pop("chosen", None)
    if share:
        items = SegmentationFolder(data, "val").items
        choosing = Choosing("multi-label", str(data), "val", share, "", items, choosing_part(items, share))
        choosing.write(folder)
        description["chosen"] = choosing.record(3, looks).model_dump()
    path.write_text(json.dumps(description))


def compared(place: Path, protocol: str = "dense-retrieval", **more: Any) -> Comparison:
    return rekindle.compare(
        place / "base",
        [place / "model"],
        place / "data",
        protocol=[protocol],
        seeds=1,
        worst_images=0,
        resamples=200,
        out=str(place / "out"),
        **{protocol.replace("-", "_"): SETTINGS[protocol]},
        **more,
    )


def test_a_few_that_chose_are_left_out_and_the_result_files_have_all(place: Path) -> None:
    mark(place / "model", place / "data", 0.1)
    found = compared(place)
    (entry,), (row,) = found.left_out, found.rows
    assert entry.is_left_out and (entry.items_chosen, entry.items_of, entry.looks) == (4, 36, LOOKS)
    assert (row.verdict.items, row.verdict.flattered) == (32, (0.0, 0.0))
    assert f"4 of 36 images chose the step of {place / 'model'} and are left out" in str(found)
    assert found.results[0].counts["images"] == 36
    written = Comparison.model_validate_json((place / "out" / "comparison.json").read_text())
    assert written.left_out == [entry] and written.notes == found.notes


def test_a_group_of_which_one_image_chose_is_left_out_whole(place: Path) -> None:
    mark(place / "model", place / "data", 0.1)
    found = compared(place, group_by="every:2")
    (entry,), (row,) = found.left_out, found.rows
    chose = choices_of(str(place / "model"))[0].names
    groups = {int(name.removeprefix("val")) // 2 for name in chose}
    assert 2 <= len(groups) <= 4 and entry.is_left_out
    assert sorted(entry.names) == sorted(f"val{2 * group + k}" for group in groups for k in (0, 1))
    assert (row.verdict.unit, row.verdict.units, row.verdict.items) == (
        "groups",
        18 - len(groups),
        36 - 2 * len(groups),
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("side", ["model", "base"])
def test_where_too_few_are_left_the_interval_reaches_further_where_choosing_flatters(
    side: str, share: float, place: Path
) -> None:
    for name in ("base", "model"):
        mark(place / name, place / "data", share if name == side else 0.0)
    found = compared(place)
    mark(place / side, place / "data", 0.0)
    plain, verdict = compared(place).rows[0].verdict, found.rows[0].verdict
    assert (verdict.items, verdict.difference) == (36, plain.difference)
    size = flattery(LOOKS, share, plain.standard_error)
    assert size > 0
    assert verdict.low == pytest.approx(plain.low - (size if side == "model" else 0.0))
    assert verdict.high == pytest.approx(plain.high + (size if side == "base" else 0.0))
    assert "the verdict flatters" in found.notes[0]
    if side == "model":
        assert f"{place / 'model'} by {100 * size:.2g} points" in found.notes[0]


def test_a_lower_number_that_is_better_is_flattered_downwards(place: Path) -> None:
    mark(place / "base", place / "data", 0.0)
    mark(place / "model", place / "data", 1.0)
    found = compared(place, "similarity").rows[0]
    assert not found.score.higher_is_better
    below, above = found.verdict.flattered
    assert below == 0.0 and above > 0.0


def test_better_by_less_than_choosing_flatters_is_no_word() -> None:
    """Forty items, better by three standard errors; four may be flattery."""
    source, score = np.random.default_rng(0), Means(headline="top-1", names=["top-1"])
    base = np.stack([source.normal(size=40), np.ones(40)], axis=-1)[None]
    model = base + np.stack([source.normal(size=40), np.zeros(40)], axis=-1)[None]
    plain = difference_of([base], [model], score)
    found = replace(plain, model=plain.base + 3 * plain.standard_error, draws=plain.draws - plain.value)
    found = replace(found, draws=found.draws + found.value)
    size = 4 * found.standard_error
    words = {}
    for name, flattered in (("plain", (0.0, 0.0)), ("model", (size, 0.0)), ("base", (0.0, size))):
        own = replace(found, flattered=flattered)
        joint = joint_verdicts({"one": own, "two": own}, 0.95)["one"]
        words[name] = verdict_of(own, [base], [model]).verdict, joint.verdict
    assert words == {"plain": ("better",) * 2, "model": ("no difference",) * 2, "base": ("better",) * 2}


def test_a_step_that_was_looked_at_once_flatters_nothing(place: Path) -> None:
    mark(place / "base", place / "data", 0.0)
    mark(place / "model", place / "data", 1.0, looks=1)
    assert compared(place).rows[0].verdict.flattered == (0.0, 0.0)


def test_a_record_without_its_names_is_refused_before_anything_is_measured(place: Path) -> None:
    mark(place / "model", place / "data", 0.5)
    (place / "model" / "choosing.txt").unlink()
    with pytest.raises(RequestError, match=r"choosing\.txt cannot be read .* copy it from the run"):
        compared(place)
    mark(place / "model", place / "data", 0.0)
