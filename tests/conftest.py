# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: shapes are checked, one thread, data of others where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shapes import install

install()

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """Folder of the real image packs; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real image packs are not at {REAL_DATA}")
    return REAL_DATA
