# SPDX-License-Identifier: Apache-2.0
"""What a run would take: as the run itself then has it, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.pretraining.forecast import forecast
from rekindle.pretraining.options import resolve
from tests.engine.running import options, run, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("plan") / "images")


def test_the_plan_is_what_the_run_then_does_and_nothing_is_written(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = forecast(resolve({}, options(images, out, optim__warmup_epochs=1.0)), measured_steps=2)
    assert not out.exists()
    result = run(images, out, optim__warmup_epochs=1.0)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rising = [line["lr"] for line in lines]
    assert (found.images, found.steps, found.batch_size) == (result.images, result.steps, 4)
    assert found.trained_parameters == result.trained_parameters
    assert found.epochs == 3.0  # nine images, two steps of four an epoch
    assert found.warmup_steps == 2
    assert rising[0] < rising[2] == max(rising) > rising[3]
    assert found.step_seconds is not None and found.total_seconds == pytest.approx(found.step_seconds * 6)
    assert found.images_per_s == pytest.approx(4 / found.step_seconds)
    kept = sum(path.stat().st_size for path in out.rglob("*") if path.suffix in (".ckpt", ".safetensors"))
    assert found.disk_bytes >= kept


def test_more_steps_are_measured_than_a_short_run_has(images: Path, tmp_path: Path) -> None:
    found = forecast(resolve({}, options(images, tmp_path / "run", steps=1)), measured_steps=3)
    assert found.measured_steps == 3 and found.steps == 1


def test_the_command_tells_what_was_chosen_and_json_says_the_same(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    plain = {k: v for k, v in options(images, tmp_path / "run").items() if k not in ("steps", "batch_size", "out")}
    file.write_text(json.dumps(plain))
    assert main(["plan", "--config", str(file), "--measure", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step_seconds"] is None and found["memory_bytes"] is None
    assert main(["plan", "--config", str(file), "--measure", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"steps    {found['steps']} of {found['batch_size']} images" in shown
    assert "images/s (median of 1)" in shown
    for name, entry in found["chosen"].items():
        assert f"  {name} = {json.dumps(entry['value'])}: {entry['why']}" in shown


def test_what_cannot_be_planned_is_refused(images: Path, tmp_path: Path) -> None:
    assert main(["plan", "--measure", "-1", "--images", str(images)]) == 2
    with pytest.raises(RequestError, match="--devices"):
        forecast(resolve({}, options(images, tmp_path / "run", devices=2)))
