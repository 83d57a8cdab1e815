# SPDX-License-Identifier: Apache-2.0
"""The harness finds what it should: a rule that errs too often misses its limits, the product's verdict keeps them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rekindle.calibration.before import draws_before
from rekindle.calibration.cells import SECTIONS, cells_of
from rekindle.calibration.limits import Limits, limits_of
from rekindle.calibration.options import CalibrationOptions
from rekindle.calibration.rules import Before, Now, Rule
from rekindle.calibration.run import run_calibration
from rekindle.calibration.simulate import jobs
from rekindle.calibration.tally import Rate, Tally, wilson
from rekindle.calibration.trials import Condition, draw
from rekindle.calibration.worlds_of_scores import WORLDS
from rekindle.cli.study import run as study
from rekindle.core.errors import RequestError
from rekindle.evaluation.verdict.difference import difference_of

RULES = ("as before", "now")


class Disguised(Before):
    """The rule of before, in the place of the product's."""

    name = "now"


def short(rule: Rule) -> Limits:
    """A few cells of the short form, with few trials."""
    wanted = ("15 groups of 20", "8 protocols", "one side predicts")
    found = [job for job in jobs(("groups", "overall", "stray"), is_short=True) if job.label.startswith(wanted[:2])]
    found += [job for job in jobs(("stray",), is_short=True) if wanted[2] in job.label]
    return limits_of([job.run(50, 3, [rule]) for job in found if job.world != "error"])


def test_the_verdict_keeps_its_limits() -> None:
    limits = short(Now(200))
    assert len(limits.checks) >= 6
    assert limits.missed == []


def test_the_rule_of_before_does_not() -> None:
    missed = {check.cell for check in short(Disguised(200)).missed if check.what == "wrong words"}
    assert {cell.split(":")[0] for cell in missed} == {"groups", "overall", "stray"}


def test_labels_name_their_cell() -> None:
    for is_short in (False, True):
        found = [(job.section, job.world, job.label) for job in jobs(SECTIONS, is_short=is_short)]
        assert len(set(found)) == len(found)


def test_what_cannot_be_read_from_the_rows_is_not_promised() -> None:
    conditions = {cell.condition: cell.is_promised for name in SECTIONS for cell in cells_of(name)}
    assert not any(kept for c, kept in conditions.items() if c.question != "this model" and c.trainings == 1)
    assert not any(kept for c, kept in conditions.items() if c.seeds == 1 and c.seed_points)
    assert not any(kept for c, kept in conditions.items() if c.units < (8 if c.group_size > 1 else 30))
    assert sum(conditions.values()) > 50


def test_wilson_is_scipys() -> None:
    for count, trials in ((0, 40), (3, 40), (52, 1000), (1000, 1000)):
        found = stats.binomtest(count, trials).proportion_ci(method="wilson")
        assert wilson(count, trials) == pytest.approx((found.low, found.high), abs=1e-12)


def test_a_tally_by_hand() -> None:
    tally = Tally("now", 0.01)
    tally.add("better", 0.005, 0.03)
    tally.add("no difference", -0.01, 0.005)
    tally.add("worse", -0.04, -0.02)
    tally.add("cannot judge", -1.0, 1.0)
    found = tally.judgement(effect=1)
    assert [rate.value for rate in (found.better, found.worse, found.wrong, found.cannot_judge)] == [
        0.25,
        0.25,
        0.25,
        0.25,
    ]
    assert found.coverage is not None and found.coverage.value == 0.5
    assert found.half_width == pytest.approx(100 * (0.0125 + 0.0075 + 0.01 + 1.0) / 4)
    assert tally.judgement(effect=0).wrong.value == 0.5


def test_different_counts_on_the_side_where_the_interval_lies() -> None:
    tally = Tally("now", 0.0)
    tally.add("different", 0.1, 0.2)
    tally.add("different", -0.2, -0.1)
    tally.add("different", -0.4, -0.1)
    found = tally.judgement()
    assert [found.better.value, found.worse.value, found.wrong.value] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_standings() -> None:
    job = next(job for job in jobs(("overall",), is_short=True))
    cell = job.run(4, 0, [Now(100)])

    def standing(wrong: int) -> str:
        judged = cell.judged[0].model_copy(update={"wrong": Rate.of(wrong, 1000)})
        return limits_of([cell.model_copy(update={"judged": [judged]})]).checks[0].standing

    assert [standing(wrong) for wrong in (50, 55, 90)] == ["holds", "within its interval", "missed"]


def test_sections_are_summed_over_their_promised_cells() -> None:
    found = run_calibration(
        CalibrationOptions(trials=5, real=0, resamples=100, cells=("few", "seeds", "effects"), short=True)
    )
    assert {(row.section, row.rule) for row in found.together} == {(s, r) for s in ("seeds", "effects") for r in RULES}
    seeds = next(row for row in found.together if (row.section, row.rule) == ("seeds", "now"))
    promised = [cell.by("now") for cell in found.measured if cell.section == "seeds" and cell.is_promised]
    assert seeds.cells == len(promised) and seeds.wrong is not None
    assert seeds.wrong.value == pytest.approx(np.mean([judged.wrong.value for judged in promised]))
    assert all(row.wrong is None for row in found.together if row.section == "effects")


def test_draws_of_a_mean_are_scipys() -> None:
    """Percentiles of paired differences, within the error of 4,000 draws."""
    sides = draw(WORLDS[3], Condition(60, points=1.0), np.random.default_rng(9))
    each = sides.model[0][0, :, 0] - sides.base[0][0, :, 0]
    theirs = stats.bootstrap((each,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    ours = draws_before(sides.base, sides.model, WORLDS[3].score, resamples=4000)
    now = difference_of(sides.base, sides.model, WORLDS[3].score, resamples=4000).draws
    error = each.std() / math.sqrt(60) * math.sqrt(0.025 * 0.975 / 4000) / stats.norm.pdf(1.96)
    for draws in (ours, now):
        low, high = np.quantile(draws, [0.025, 0.975])
        assert low == pytest.approx(theirs.confidence_interval.low, abs=5 * error)
        assert high == pytest.approx(theirs.confidence_interval.high, abs=5 * error)
        assert draws.std() == pytest.approx(theirs.standard_error, rel=0.06)


def test_a_cell_does_not_depend_on_what_is_measured_before_it() -> None:
    options = CalibrationOptions(trials=4, real=0, resamples=100, cells=("stray", "chosen"), short=True)
    alone = run_calibration(options.model_copy(update={"cells": ("stray",)}))
    together = run_calibration(options)
    assert together.measured[-1] == alone.measured[-1]


def test_the_command_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "calibration",
        "--short",
        "--trials",
        "5",
        "--real",
        "0",
        "--cells",
        "stray",
        "effects",
        "--resamples",
        "100",
    ]
    study([*asked, "--out", str(tmp_path / "a"), "--json"])
    told = capsys.readouterr()
    study([*asked, "--out", str(tmp_path / "b")])
    assert "ETA" in told.err
    found = json.loads((tmp_path / "a" / "calibration.json").read_text())
    assert json.loads(told.out) == found
    assert (tmp_path / "a" / "calibration.json").read_bytes() == (tmp_path / "b" / "calibration.json").read_bytes()
    page = (tmp_path / "a" / "calibration.md").read_text()
    assert "effect 0.5" in page and str(tmp_path) not in page + (tmp_path / "a" / "calibration.json").read_text()
    assert (tmp_path / "a" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_section_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="grops") as caught:
        study(["calibration", "--cells", "grops"])
    assert "groups" in str(caught.value)
