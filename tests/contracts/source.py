# SPDX-License-Identifier: Apache-2.0
"""The package's own source as syntax trees, for tests about how it is written."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src"


def modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Every module below a folder, by its dotted name."""
    trees = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
