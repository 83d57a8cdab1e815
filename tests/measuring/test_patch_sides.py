# SPDX-License-Identifier: Apache-2.0
"""Sides that nobody set follow a model's patch; those that were asked for are refused where it does not divide them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.core.tables import import_options
from rekindle.evaluation import PROTOCOLS
from rekindle.measuring.options import fitted_to_patch, preset_values
from tests.evaluation.toy import write_data

MODEL = "vit:width=32,depth=1,heads=2,patch=14,img=56"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_no_default_and_no_preset_has_a_side_that_the_patch_does_not_divide(protocol: str, patch: int) -> None:
    options = import_options(PROTOCOLS, "protocol", protocol)
    for preset in ("small", *options.PRESETS):
        values = preset_values([protocol], preset)[protocol]
        fitted = fitted_to_patch(options(**values), values, patch)
        for name in options.WHOLE_PATCHES:
            asked, found = getattr(options(**values), name), getattr(fitted, name)
            assert found % patch == 0 and abs(found - asked) <= patch / 2, (preset, name)


def test_a_side_that_was_asked_for_stays() -> None:
    options = import_options(PROTOCOLS, "protocol", "fpn")
    assert fitted_to_patch(options(crop_px=150), {}, 14).crop_px == 150  # type: ignore[attr-defined]


def test_fpn_runs_on_patches_of_14_and_its_result_says_the_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        MODEL,
        "--init",
        "random",
        "--protocol",
        "fpn",
        "--data",
        str(write_data(tmp_path / "data")),
    ]
    arguments += [
        "--out",
        str(tmp_path / "r.json"),
        "--fpn.steps",
        "1",
        "--fpn.warmup-steps",
        "0",
        "--fpn.batch-size",
        "1",
    ]
    arguments += ["--worst-images", "0"]
    assert main(arguments) == 0
    assert "crop_px = 154 for 160, as the model's patch of 14 px divides" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["config"]["crop_px"] == 154
    assert main([*arguments, "--fpn.crop-px", "150"]) == 2
    assert "crop_px = 150 is not a multiple of the model's patch size 14; use 140 or 154" in capsys.readouterr().err
