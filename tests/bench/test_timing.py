# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os

import pytest

from rekindle.bench.timing import measure
from rekindle.core.errors import RekindleError

CASE = {"seconds": 0.02, "bytes": 64 << 20}
SIDES = "tests.bench.sides"


def test_sides_run_in_turn_in_processes_of_their_own_and_their_memory_is_seen() -> None:
    before = dict(os.environ)
    fast, slow = measure({"fast": f"{SIDES}:Sleeper", "slow": f"{SIDES}:Slow"}, CASE, rounds=3, threads=1)
    assert (fast.label, slow.label) == ("fast", "slow")
    assert len(fast.seconds) == len(slow.seconds) == 3
    assert min(slow.seconds) >= 0.1  # sleep never returns early; how late is the machine's business
    assert min(fast.seconds) >= 0.02
    assert fast.images == 3
    assert fast.facts == {"runs": 4, "threads": "1", "wait": "passive"}  # the untimed round counts as a run
    assert fast.peak_bytes - fast.baseline_bytes > 48 << 20
    assert dict(os.environ) == before


def test_figures_are_plain_values_and_follow_from_the_rounds() -> None:
    (side,) = measure({"one": f"{SIDES}:Sleeper"}, CASE, rounds=3)
    figures = json.loads(json.dumps(side.to_dict()))
    ordered = sorted(figures["seconds"])
    assert figures["median_s"] == ordered[1]
    assert figures["images_per_s"] == 3 / ordered[1]
    assert figures["spread"] == (ordered[2] - ordered[0]) / ordered[1]


def test_a_side_that_fails_says_so_with_its_trace() -> None:
    with pytest.raises(RekindleError, match=r"'bad' failed:(.|\n)*this side cannot"):
        measure({"bad": f"{SIDES}:Broken"}, CASE)


def test_a_side_that_dies_is_named_with_its_exit_code() -> None:
    with pytest.raises(RekindleError, match=r"'gone' ended \(exit code 7\)"):
        measure({"gone": f"{SIDES}:Dying"}, CASE)
