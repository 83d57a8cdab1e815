# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest

from rekindle.pretraining import machine
from rekindle.pretraining.machine import Machine, machine_of, precision_line, with_precision
from rekindle.pretraining.options import PretrainOptions, Resolved, resolve
from tests.engine.running import run, stop_after, write_images


def _resolved(precision: str) -> Resolved:
    return resolve({}, {"accelerator": "cpu", "precision": precision})


@pytest.mark.parametrize(
    ("asked", "native", "expected"),
    [
        ("auto", None, "fp32"),
        ("auto", "amx_bf16", "bf16"),
        ("fp32", "amx_bf16", "fp32"),
        ("bf16", None, "bf16"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_multiplies_it(
    asked: str, native: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "native_bf16", lambda: native)
    found = machine_of(PretrainOptions(accelerator="cpu", precision=asked))
    assert (found.is_gpu, found.precision, found.is_bf16) == (False, expected, expected == "bf16")


def test_a_line_says_what_was_taken_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "native_bf16", lambda: "avx512_bf16")
    auto = machine_of(_resolved("auto").options)
    assert precision_line(auto) == "precision: bf16 (this processor has avx512_bf16)"
    assert precision_line(machine_of(_resolved("fp32").options)) == "precision: fp32 (asked for)"
    monkeypatch.setattr(machine, "native_bf16", lambda: None)
    monkeypatch.setattr(machine, "instruction_sets", lambda: ("avx2",))
    without = machine_of(_resolved("auto").options)
    assert (
        precision_line(without) == "precision: fp32 (this processor, with avx2, does not multiply bfloat16 by itself)"
    )


def test_bf16_on_a_cpu_without_it_is_warned_of_with_the_factor_just_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "native_bf16", lambda: None)
    monkeypatch.setattr(machine, "bf16_factor", lambda: 3.14)
    line = precision_line(machine_of(_resolved("bf16").options))
    assert (
        re.match(r"warning: --precision bf16 takes 3\.1 times as long as fp32 here", line)
        and "--precision fp32" in line
    )


def test_the_factor_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by hand: each product of bfloat16 takes 6, each of float32 takes 2, but the first of each takes long."""
    took = iter([50.0, 90.0, *[6.0, 2.0] * 5])
    now, turn = [0.0], [0]

    def clock() -> float:
        if turn[0] % 2:
            now[0] += next(took)
        turn[0] += 1
        return now[0]

    monkeypatch.setattr("rekindle.pretraining.machine.time.perf_counter", clock)
    assert machine.bf16_factor() == 3.0


def test_a_run_keeps_what_auto_came_to_wherever_it_goes_on() -> None:
    kept = with_precision(_resolved("auto"), Machine(False, "bf16", "this processor has amx_bf16"))
    assert (kept.options.precision, kept.sources["precision"]) == ("bf16", "machine")
    assert kept.reasons["precision"] == "this processor has amx_bf16"
    assert resolve({"precision": kept.options.precision}, {}).options.precision == "bf16"
    asked = _resolved("fp32")
    assert with_precision(asked, Machine(False, "fp32")) is asked


def test_a_run_that_goes_on_with_auto_computes_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "run"
    monkeypatch.setattr(machine, "native_bf16", lambda: "amx_bf16")
    assert not run(images, out, precision="auto", watcher=stop_after(2)).is_finished
    monkeypatch.setattr(machine, "native_bf16", lambda: None)
    assert run(images, out, precision="auto", resume=True).is_finished
    assert "precision: bf16" in (out / "config.yaml").read_text()


def test_a_run_of_before_that_kept_auto_goes_on_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "run"
    assert not run(images, out, watcher=stop_after(2)).is_finished
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("precision: fp32", "precision: auto"))
    assert "precision: auto" in config.read_text()
    monkeypatch.setattr(machine, "native_bf16", lambda: "amx_bf16")
    assert run(images, out, precision="auto", resume=True).is_finished
    assert "precision: fp32" in config.read_text()
