# SPDX-License-Identifier: Apache-2.0
"""Energy is what the counters say, and nothing where they say nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rekindle.engine.energy import energy_meter

CPU = torch.device("cpu")


def counter(root: Path, name: str, kind: str, value: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(kind)
    (folder / "max_energy_range_uj").write_text("999999")
    (folder / "energy_uj").write_text(str(value))
    return folder / "energy_uj"


def test_packages_are_summed_and_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    """0.9 J to 0.1 J with a range of 1 J is 0.2 J more; another package adds 0.3 J; its memory is not counted twice."""
    first = counter(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 0)
    inner = counter(tmp_path, "intel-rapl:0:0", "dram", 0)
    joules = energy_meter(CPU, tmp_path)
    assert joules is not None and joules() == 0.0
    first.write_text("100000")
    second.write_text("300000")
    inner.write_text("700000")
    assert joules() == pytest.approx(0.5)
    assert joules() == pytest.approx(0.5)


def test_a_device_that_does_not_tell_has_no_meter(tmp_path: Path) -> None:
    assert energy_meter(CPU, tmp_path) is None


def test_counters_that_may_not_be_read_are_no_meter(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", "package-0", 0).unlink()
    assert energy_meter(CPU, tmp_path) is None


class Library:
    """Stands for NVIDIA's library: 5 J more at every reading, in millijoules; status 0 is success."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.read, self.asked = status, 0, b""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
        self.asked = uuid
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, used: Any) -> int:
        self.read += 5000
        used._obj.value = self.read
        return self.status


@pytest.mark.parametrize("status", [0, 3])
def test_a_card_is_asked_by_its_own_name_and_told_in_joules(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    library = Library(status)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    joules = energy_meter(torch.device("cuda"))
    assert library.asked == b"GPU-12-34"
    assert (joules is None) if status else (joules is not None and joules() == 5.0)


@pytest.mark.gpu
def test_a_gpu_at_work_uses_energy() -> None:
    device = torch.device("cuda")
    joules = energy_meter(device)
    assert joules is not None
    matrix = torch.rand(4096, 4096, device=device)
    for _ in range(200):
        matrix = matrix @ matrix / 4096
    torch.cuda.synchronize()
    assert joules() > 0.1
