# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.running_scripts import SCRIPTS, function_of


def _fine() -> dict[str, object]:
    return {"images_per_s": 2.0}


def _broken() -> dict[str, object]:
    raise ValueError("no such kernel")


def _gone() -> dict[str, object]:
    raise SystemExit(7)


def _slow() -> dict[str, object]:
    time.sleep(60)
    return {}


def test_a_section_that_fails_hangs_or_dies_leaves_the_others_alone() -> None:
    section, check = function_of("gpu_check", "Section"), function_of("gpu_check", "check")
    chosen = {
        "broken": section(_broken, 0.5),
        "gone": section(_gone, 0.5),
        "slow": section(_slow, 0.1),
        "left": section(_fine, 0.5, "there is no compiler"),
        "fine": section(_fine, 0.9),
    }
    result = check(chosen, 10.0)
    told = result["sections"]
    assert {name: one["state"] for name, one in told.items()} == {
        "broken": "failed",
        "gone": "failed",
        "slow": "not run",
        "left": "left out",
        "fine": "passed",
    }
    assert told["broken"]["error"] == "ValueError: no such kernel" and "code 7" in told["gone"]["error"]
    assert told["slow"]["reason"] == "not done within its 1 s" and told["left"]["reason"] == "there is no compiler"
    assert not result["passed"] and result["median_images_per_s"] == 2.0 and result["seconds"] < 10


def test_what_the_time_does_not_reach_is_not_run_with_the_reason() -> None:
    section, check = function_of("gpu_check", "Section"), function_of("gpu_check", "check")
    result = check({"late": section(_fine, 0.5)}, 0.0)
    assert result["sections"]["late"] == {
        "state": "not run",
        "reason": "the time of the whole check was used up",
    }
    assert not result["passed"]


def test_the_shares_of_the_sections_of_a_gpu_are_ten_minutes_or_what_is_wanted_least_is_cut() -> None:
    sections = function_of("gpu_check", "sections")
    names = list(sections(short=False))
    assert [n for n in names if n.startswith("step")] == [
        f"step {method} {model} batch {batch}"
        for model in ("ViT-S/16", "ViT-S/14", "ViT-B/16")
        for method in ("dino", "glare")
        for batch in ("recipe", "512")
    ]
    assert names[0] == "machine" and {*names[13:]} == {"kernels", "compile", "resume", "bits", "views", "t100"}


def test_the_short_form_passes_on_a_cpu(tmp_path: Path) -> None:
    """In a process of its own: sections are forked, and torch refuses a way back in the fork of a process that has gone one."""
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--short", "--out", str(tmp_path / "check.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    told = json.loads((tmp_path / "check.json").read_text())
    failed = {name: one for name, one in told["sections"].items() if one["state"] not in ("passed", "left out")}
    assert (done.returncode, told["passed"], failed) == (0, True, {})
    found = {name: one["found"] for name, one in told["sections"].items() if one["state"] == "passed"}
    assert found["step glare tiny batch recipe"]["images_per_s"] > 0 and len(found["kernels"]["most"]) == 10
    assert 0 < found["step dino tiny batch recipe"]["limit_share"] < 1 and len(found["resume"]["losses"]) == 4
    assert {name for name, one in told["sections"].items() if one["state"] == "left out"} == {"compile", "t100"}
