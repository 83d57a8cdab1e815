# SPDX-License-Identifier: Apache-2.0
"""Energy that the device says it has used: NVIDIA's management library, or the counters of an Intel or AMD processor on Linux."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """Return a function that tells the joules used since this call, or None where the device does not tell.

    A GPU is measured alone and whole, with whatever else runs on it; a processor likewise, as its packages, and only where the
    counters may be read (many systems keep them for the administrator).
    """
    total = _gpu_joules(device) if device.type == "cuda" else _package_joules(powercap)
    if total is None:
        return None
    start = total()
    return lambda: total() - start


def _gpu_joules(device: torch.device) -> Callable[[], float] | None:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()

    def read() -> float:
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) != 0:
            return float("nan")  # a card that told before and does not any more: the log shows the gap
        return used.value / 1e3

    failed = library.nvmlInit_v2() != 0 or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) != 0
    return None if failed or math.isnan(read()) else read


def _package_joules(powercap: Path) -> Callable[[], float] | None:
    """Sum over the packages; each counter runs in microjoules up to its own range and starts again at 0."""
    counters: list[_Counter] = []
    for folder in sorted(powercap.glob("*-rapl:*")):
        try:
            if (folder / "name").read_text().startswith("package"):
                counters.append(_Counter(folder))
        except OSError:
            return None
    return (lambda: sum(counter.joules() for counter in counters)) if counters else None


class _Counter:
    """One counter that wraps around; it has to be read more often than it wraps (minutes at full load)."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._total = 0

    def joules(self) -> float:
        now = int(self._file.read_text())
        self._total += (now - self._last) % (self._range + 1)
        self._last = now
        return self._total / 1e6
