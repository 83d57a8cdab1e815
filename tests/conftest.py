# SPDX-License-Identifier: Apache-2.0
"""Shapes written in annotations are checked whenever tests run (jaxtyping with beartype)."""

from __future__ import annotations

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["rekindle.objectives", "rekindle.views", "rekindle.networks", "rekindle.methods"], "beartype.beartype"
)

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
