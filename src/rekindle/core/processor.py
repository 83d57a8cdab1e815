# SPDX-License-Identifier: Apache-2.0
"""The processor: its instruction sets, whether it multiplies bfloat16 by itself, and the cores that a process may use.

Nothing here imports torch before it is asked for instruction sets, because what OpenMP reads must be set before that.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SETS: Mapping[str, str] = {
    "avx2": "avx2",
    "avx512_f": "avx512f",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx10_2": "avx10_2",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "bf16": "arm_bf16",
    "sve": "sve",
}
"""As torch and Linux call an instruction set -> as we do; from the least to the most that it can."""
MULTIPLY_BF16 = ("amx_bf16", "avx10_2", "avx512_bf16", "arm_bf16")
"""Those that multiply bfloat16 by themselves, the fastest first. Without one, numbers are widened, multiplied and rounded."""
WAITING: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""What GNU's and Intel's OpenMP read: threads sleep while they wait, and leave the core to a neighbour."""


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Names of `SETS` that the processor has."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)  # younger than the oldest torch that we take
    has: Mapping[str, object] = ask() if ask is not None else dict.fromkeys(_flags_of_linux(), True)
    return tuple(dict.fromkeys(ours for theirs, ours in SETS.items() if has.get(theirs) is True))


def native_bf16() -> str | None:
    """The instruction set with which this processor multiplies bfloat16 by itself; None without one."""
    return next((name for name in MULTIPLY_BF16 if name in instruction_sets()), None)


def usable_cores() -> int:
    """Cores that this process may keep busy: of those that it may run on, no two of one physical core, within the quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    cores = len({_siblings(cpu) for cpu in allowed})
    quota = _quota(Path("/sys/fs/cgroup"))
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Put into the environment, where the user has not, what torch's threads read when it is loaded.

    They wait without spinning; where a quota or hyper-threads leave fewer cores than the system shows, they are no more.
    """
    for name, value in WAITING.items():
        environment.setdefault(name, value)
    cores = usable_cores()
    if cores < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(cores))


def share_cores(processes: int) -> None:
    """Let torch's threads of each of so many processes be no more than its share of the cores."""
    if processes > 1:
        import torch

        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores() // processes)))


def _siblings(cpu: int) -> str:
    """What two logical processors of one physical core have in common."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _quota(groups: Path) -> float | None:
    """Cores' worth of time that the control group allows (version 2, or 1); None without a limit."""
    try:
        limit, period = (groups / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            limit = (groups / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (groups / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return None if limit == "max" or int(limit) <= 0 else int(limit) / int(period)


def _flags_of_linux() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
