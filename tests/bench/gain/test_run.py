# SPDX-License-Identifier: Apache-2.0
"""`rekindle bench gain` as a whole, with a tiny network: trained here, and scored from runs that were trained before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from rekindle.bench.gain.run import run_gain
from rekindle.cli import main
from rekindle.core.errors import RekindleError
from tests.bench.gain.asking import gain_options
from tests.matrix.making import COMMON, tree


def written(place: Path) -> list[str]:
    """Images, data, a base, and two recipes of them; the words that ask for all that."""
    grid = tree(place)
    for name, steps in (("usual", 4), ("half", 2)):
        recipe = {**COMMON, "method": "dino", "steps": steps}
        recipe.pop("glare")
        (place / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    words = ["bench", "gain", "--recipe", str(place / "usual.yaml"), str(place / "half.yaml")]
    words += ["--backbone", grid["starts"]["tiny"], "--images", grid["images"], "--labels", grid["data"]]
    words += ["--threads", "1", "--accelerator", "cpu", "--resamples", "100", "--protocol", "dense-retrieval"]
    return [*words, "--dense-retrieval.size-px", "32", "--dense-retrieval.memory-size", "30"]


@pytest.mark.slow
def test_a_bench_trains_scores_and_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = written(tmp_path)
    trained = [*words, "--seeds", "1", "--marks", "0.5", "--work", str(tmp_path / "work"), "--json"]
    assert main([*trained, "--out", str(tmp_path / "gain.json")]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found == json.loads((tmp_path / "gain.json").read_text())
    assert str(tmp_path) not in told.out
    usual, half = found["sides"]
    assert [point["step"] for point in usual["curve"]] == [0, 2, 4]
    assert [point["step"] for point in half["curve"]] == [0, 1, 2]
    assert usual["curve"][0]["score"] == half["curve"][0]["score"]
    assert usual["curve"][-1]["seconds"] == pytest.approx(usual["pace"]["whole_seconds"])
    assert usual["gain"]["training_seeds"] == 1 and usual["against_baseline"] is None
    assert usual["pace"]["peak_bytes"] > 2**26 and usual["recipe"]["images"] == "images"
    with Image.open(tmp_path / "gain.png") as picture:
        assert picture.width > 500

    assert main(trained) == 0  # again: nothing is trained or measured anew
    told = capsys.readouterr()
    assert json.loads(told.out) == found and "half, seed 0: trained before" in told.err

    runs = {"half": [str(tmp_path / "work" / "half" / "seed-0" / "run")]}
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    assert main([*words, "--time-only", "1", "--runs", str(tmp_path / "runs.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "usual, the baseline, was not scored" in shown and "counted up from timed steps (1, 1)" in shown


def test_a_run_that_began_elsewhere_is_no_gain_over_this_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rekindle.bench.gain import run, scores
    from rekindle.bench.gain.pace import Mark, Training

    written(tmp_path)
    grid: dict[str, Any] = tree(tmp_path)
    asked = {"recipe": [str(tmp_path / "usual.yaml")], "images": grid["images"], "labels": grid["data"], "seeds": 1}
    asked |= {"backbone": grid["starts"]["tiny"], "protocol": "dense-retrieval", "dense_retrieval": {"size_px": 32}}
    description = {"base": {"name": "another", "sha256": "0" * 64}, "model_hash": "1" * 64}
    monkeypatch.setattr(scores, "read_description", lambda path: description)
    other = {"usual": (None, Training(0, (Mark(1, 1.0, None, tmp_path / "run"),)))}
    monkeypatch.setattr(run, "train_in_turn", lambda *given: other)
    with pytest.raises(RekindleError, match="was trained from another with hash 000000000000, and the start has"):
        run_gain(gain_options(asked), print)
