# SPDX-License-Identifier: Apache-2.0
"""Free memory: how much this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes() -> int:
    """Free memory of the machine, or of the control groups (v2) that this process is in, whichever is less."""
    return min([int(psutil.virtual_memory().available), *_left_by_groups()])


def _left_by_groups() -> list[int]:
    """What each limit on the way up leaves; a container sees its own group as the root."""
    group = _own_group()
    if group is None:
        return []
    left = []
    for folder in [group, *group.parents]:
        room = _left_by(folder)
        if room is not None:
            left.append(room)
        if folder == CGROUP_ROOT:
            break
    return left


def _own_group() -> Path | None:
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if own is None else CGROUP_ROOT / own.strip("/")


def _left_by(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    # Cached files that nobody uses count as taken, but the kernel gives them up before it refuses anything.
    cached = next((int(line.split()[1]) for line in statistics if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - used + cached)
