# SPDX-License-Identifier: Apache-2.0
"""`rekindle export` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rekindle.cli import main
from tests.exporting.making import VIT, write_base, write_run


def test_it_prints_the_parity_and_what_differs_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path, VIT)
    assert main(["export", str(base), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "parity: largest difference" in printed.out and "at 48 x 56 px" in printed.out
    assert "matched" in printed.err


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path, VIT)
    assert main(["export", str(base), "--format=safetensors", "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "safetensors" and Path(found["out"]) == tmp_path / "out"
    assert found["files"] == ["README.md", "model.json", "model.safetensors"]
    assert found["parity"]["max_abs_difference"] == 0.0 and found["parity"]["sizes"][0] == [2, 32, 32]


def test_a_model_that_does_not_fit_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, VIT, kind="uniadapter")
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 2
    assert "export it with --format hf, onnx, safetensors" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "tim", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'timm'" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "timm"]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_the_extra() -> None:
    code = (
        "import sys\nfrom rekindle.cli import main\nassert main(['export', '--help']) == 0\n"
        "loaded = {'torch', 'timm', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("--verdict", "--base", "--arch", "mmseg", "model.onnx"):
        assert word in done.stdout
