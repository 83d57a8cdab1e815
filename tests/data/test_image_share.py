# SPDX-License-Identifier: Apache-2.0
"""A run on a share of the images: it says so, and it does not go on with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rekindle.cli import main
from tests.engine.running import write_images
from tests.evaluation.toy import save_tiny
from tests.matrix.making import COMMON


def _request(folder: Path, *more: str) -> list[str]:
    if not (folder / "base").exists():
        save_tiny(folder / "base")
        write_images(folder / "images", 12)
        content = {k: v for k, v in COMMON.items() if k != "dino"}
        (folder / "run.yaml").write_text(yaml.safe_dump(content))
    asked = ["pretrain", "--config", str(folder / "run.yaml"), "--images", str(folder / "images")]
    return [*asked, "--backbone", str(folder / "base"), "--out", str(folder / "run"), *more]


def test_the_run_records_its_share_and_learns_from_no_other_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = ["--data.fraction", "0.5", "--data.fraction-seed", "2"]
    assert main([*_request(tmp_path, *share), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 6
    assert f"6 images in {tmp_path / 'images'} (0.5 of them)" in printed.err
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert (recorded["fraction"], recorded["fraction_seed"]) == (0.5, 2)
    for other in (["--data.fraction", "1.0"], ["--data.fraction-seed", "3"]):
        assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume", *other]) == 2
        assert f"with {other[0].removeprefix('--').replace('-', '_')} =" in capsys.readouterr().err


def test_the_plan_counts_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`rekindle config --images` plans for what the run would see."""
    folder = write_images(tmp_path / "images", 40)
    steps = []
    for share in ("1.0", "0.25"):
        request = ["config", "--images", str(folder), "--data.fraction", share, "--epochs", "10", "--json"]
        assert main(request) == 0
        steps.append(json.loads(capsys.readouterr().out))
    assert "40 images" in json.dumps(steps[0]) and "10 images" in json.dumps(steps[1])
