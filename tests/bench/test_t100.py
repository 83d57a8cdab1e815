# SPDX-License-Identifier: Apache-2.0
"""T100: what 100 epochs of a method take, from two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.bench.epoch import TwoEpochs
from rekindle.bench.t100 import Flsl, Glare, Udi, hundred_epochs, prepare
from rekindle.bench.timing import SideTimes
from rekindle.cli import main
from tests.bench.cases import tiny


def test_a_hundred_epochs_are_the_first_and_99_times_the_second() -> None:
    """By hand: the warm-up left out; 50 of 100 images measured, so twice (10 + 99 * 4) and twice (20 + 99 * 5) seconds."""
    epochs = [[{"seconds": s, "wait": 0.0, "images": 50} for s in pair] for pair in ((90, 90), (10, 4), (20, 5))]
    row = hundred_epochs(SideTimes("GLARE", (0.0,), 100, 1.0, 5, 9, {"epochs": epochs}), 1, 100)
    assert row.seconds == pytest.approx((812.0, 1030.0))
    assert row.images == 10_000 and row.peak_bytes == 9
    assert row.facts["T100"] == "15.3 min"


@pytest.mark.parametrize("side", [Udi, Flsl, Glare])
def test_every_method_goes_on_from_a_base_for_two_epochs(side: type[TwoEpochs], tmp_path: Path) -> None:
    case = tiny("t100", rank=4)
    bench = side(prepare(case, tmp_path))
    options = bench._resolved(tmp_path / "run").options
    assert (options.method, options.train, options.adapter.rank) == (side.METHOD, "adapters", 4)
    assert bench.run() == 16
    ((first, second),) = bench._epochs
    assert first["images"] == second["images"] == 8 and first["seconds"] > 0 and second["seconds"] > 0


@pytest.mark.slow
def test_table_8_comes_from_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """In miniature, with one round: every method trains its adapters for two epochs, and has its T100."""
    words = "bench t100 --backbone vit:width=32,depth=2,heads=2,patch=16,img=32 --accelerator cpu --rounds 1 --warmup 0".split()
    words += "--num-images 8 --height 48 --width 64 --batch-size 4 --num-prototypes 16 --rank 4".split()
    words += "--views.global-size-px 64 --views.local-size-px 32 --views.num-local 2".split()
    assert main([*words, "--json"]) == 0
    sides = json.loads(capsys.readouterr().out)["sides"]
    assert [side["label"] for side in sides] == ["UDI", "FLSL", "GLARE"]
    assert all(
        side["images"] == 800 and side["median_s"] > 0 and side["facts"]["T100"].endswith(" min") for side in sides
    )
