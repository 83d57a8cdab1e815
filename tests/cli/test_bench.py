# SPDX-License-Identifier: Apache-2.0
"""`rekindle bench` as a user meets it; sides that a test can predict stand in for real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rekindle.bench import table
from rekindle.bench.table import Bench
from rekindle.cli import main
from rekindle.cli.bench import gathered
from tests.bench.cases import TINY_VIT


@pytest.fixture
def two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {"ours": "tests.bench.sides:Counted", "theirs": "tests.bench.sides:CountedTwice"}
    monkeypatch.setitem(table.BENCHES, "extract", Bench("counting", ours=sides, shown=("seen", "flops")))


@pytest.mark.usefixtures("two_sides")
def test_a_bench_prints_a_table_and_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    request = ["bench", "extract", "--rounds", "2", "--accelerator", "cpu", "--batch-size", "3"]
    assert main(request) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "rekindle bench extract: counting"
    for line in ("preparing ours", "ours: warm-up 1 of 1", "theirs: round 2 of 2"):
        assert line in shown.err
    ours, theirs = (line.split() for line in shown.out.splitlines() if line.strip().startswith(("ours ", "theirs ")))
    assert ours[0] == "ours" and theirs[0] == "theirs"
    assert "ours: seen 3, flops 30" in shown.out
    assert "thread(s)" in shown.out


@pytest.mark.usefixtures("two_sides")
def test_json_is_one_object_and_the_file_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    request = ["bench", "extract", "--rounds", "3", "--warmup", "0", "--seed", "5", "--accelerator", "cpu"]
    assert main([*request, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["bench"] == "extract" and printed["case"]["seed"] == 5 and printed["machine"]["threads"] == 1
    ours, theirs = printed["sides"]
    assert (ours["label"], ours["images"], theirs["images"]) == ("ours", 8, 16)
    assert len(ours["seconds"]) == 3
    assert ours["median_s"] == sorted(ours["seconds"])[1]
    assert theirs["ratio"] == pytest.approx((theirs["median_s"] / 16) / (ours["median_s"] / 8))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "say what to measure: "),
        (["stp"], "did you mean 'step'"),
        (["step", "--peer", "nobody"], "unknown peer 'nobody'"),
        (["extract", "--peer", "lightly"], "bench extract has no side for it"),
        (["step", "--rounds", "0"], "greater than or equal to 1"),
        (["step", "--views.hue", "3"], "hue"),
        (["step", "--out", "nowhere/x.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_request_exits_with_two_and_says_why(
    request_: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *request_]) == 2
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text


def test_peers_may_be_repeated_or_listed() -> None:
    wanted = ["step", "--json", "--peer", "a", "b"]
    assert gathered(["step", "--peer", "a", "--peer", "b", "--json"], "--peer") == wanted
    assert gathered(["step", "--peer", "a", "b", "--json"], "--peer") == wanted
    assert gathered(["step", "--peer=a", "--json", "--peer=b"], "--peer") == wanted
    assert gathered(["step", "--json"], "--peer") == ["step", "--json"]


def test_help_lists_the_benches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:<8} {bench.summary}" in shown for name, bench in table.BENCHES.items())
    assert "--peer" in shown


@pytest.mark.slow
def test_a_real_bench_of_steps_from_the_command_line(tmp_path: Path) -> None:
    request = (
        f"bench step --backbone {TINY_VIT} --batch-size 2 --rounds 1 --warmup 0 --num-prototypes 16 --accelerator cpu"
    )
    request += " --views.global-size-px 64 --views.local-size-px 32 --views.num-local 2 --json"
    command = [sys.executable, "-m", "rekindle", *request.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sides = {side["label"]: side for side in json.loads(done.stdout)["sides"]}
    assert list(sides) == ["rekindle dino", "rekindle glare", table.LIMIT]
    assert all(0 < side["limit_share"] < 1.5 for side in sides.values())
    assert sides["rekindle glare"]["images"] == 2
