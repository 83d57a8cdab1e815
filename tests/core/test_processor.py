# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from rekindle.core import processor


@pytest.mark.parametrize(
    ("has", "sets", "native"),
    [
        ({"avx2": True, "avx512_f": False, "avx512_bf16": False}, ("avx2",), None),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, ("avx2", "avx512f", "avx512_bf16"), "avx512_bf16"),
        (
            {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": True},
            ("avx2", "avx512f", "avx512_bf16", "amx_bf16"),
            "amx_bf16",
        ),
        ({"neon": True, "bf16": True, "sve": False, "sve_max_length": 0}, ("neon", "arm_bf16"), "arm_bf16"),
        ({"neon": True, "bf16": False, "sve": True, "sve_max_length": 256}, ("neon", "sve"), None),
    ],
)
def test_instruction_sets_are_those_that_torch_finds(
    has: dict[str, object], sets: tuple[str, ...], native: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(has), raising=False)
    processor.instruction_sets.cache_clear()
    try:
        assert (processor.instruction_sets(), processor.native_bf16()) == (sets, native)
    finally:
        processor.instruction_sets.cache_clear()


def test_cores_are_within_the_quota_of_the_control_group(tmp_path: Path) -> None:
    assert processor._quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processor._quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert processor._quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert processor._quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert processor._quota(tmp_path) == 4.0


def test_two_threads_of_a_physical_core_count_once_and_a_started_core_of_a_quota_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 5}, raising=False)
    monkeypatch.setattr(processor, "_siblings", lambda cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
    monkeypatch.setattr(processor, "_quota", lambda groups: None)
    assert processor.usable_cores() == 3
    monkeypatch.setattr(processor, "_quota", lambda groups: 1.5)
    assert processor.usable_cores() == 2


def test_threads_wait_without_spinning_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(processor, "usable_cores", lambda: 8)
    own = {"OMP_WAIT_POLICY": "active"}
    processor.settle_threads(own)
    assert own == {"OMP_WAIT_POLICY": "active", "KMP_BLOCKTIME": "0"}
    monkeypatch.setattr(processor, "usable_cores", lambda: 3)
    for before, threads in (({}, "3"), ({"OMP_NUM_THREADS": "7"}, "7")):
        environment: dict[str, str] = dict(before)
        processor.settle_threads(environment)
        assert environment["OMP_NUM_THREADS"] == threads


def test_processes_of_a_run_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(processor, "usable_cores", lambda: 8)
    for processes in (1, 2, 3, 16):
        processor.share_cores(processes)
    assert set_to == [4, 2, 1]


def test_the_command_settles_threads_before_torch_is_loaded() -> None:
    code = (
        "import os, sys, rekindle.cli as cli\n"
        "before = 'torch' in sys.modules\n"
        "cli.main(['list', 'methods'])\n"
        "print(before, os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False passive 0"
