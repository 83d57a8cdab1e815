# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: shapes are checked, one thread, and how tests are spread over processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.shapes import install

install()

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LONG = ("robustness", "cli", "matrix", "app", "bench", "engine", "data", "contracts")
"""Folders whose files take the longest; they start first, so that none is left to one process at the end."""
MOST_WORKERS = 8
"""More end no sooner: each imports everything anew, and the longest file is one process's."""
WORKER_BYTES = 2 << 30
"""What a process of tests needs, with what its tests start."""


def pytest_xdist_auto_num_workers() -> int:
    """Take a process per core that this one may use, as far as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, psutil.virtual_memory().available // WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _auto_is_float32() -> Iterator[None]:
    """The same numbers on every machine: `precision=auto` finds no bfloat16 in the processor, unless a test says so."""
    from rekindle.pretraining import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "native_bf16", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _curves_are_not_drawn() -> Iterator[None]:
    from tests.curves import not_drawn

    with not_drawn():
        yield


@pytest.fixture
def real_data() -> Path:
    """Folder of the real image packs; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real image packs are not at {REAL_DATA}")
    return REAL_DATA
