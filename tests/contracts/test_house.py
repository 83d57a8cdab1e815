# SPDX-License-Identifier: Apache-2.0
"""The house: few modules and rooms at the top, few rungs, no folder, module or function too large, no circle of imports."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import rekindle

PACKAGE = Path(rekindle.__file__).parent
SETTINGS = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = [path for path in PACKAGE.rglob("*.py")]


def test_the_top_holds_the_face_and_rooms() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}
    assert len([path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]) <= 22


def test_no_folder_is_flat_and_wide() -> None:
    widths = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES}}
    assert {str(folder): width for folder, width in widths.items() if width > 22} == {}


def test_the_linter_has_few_rungs_and_looks_inside_the_wide_rooms() -> None:
    layers = {
        container: contract["layers"]
        for contract in SETTINGS["tool"]["importlinter"]["contracts"]
        for container in contract.get("containers", [])
    }
    assert len(layers["rekindle"]) <= 12
    assert {"rekindle.evaluation", "rekindle.networks"} <= set(layers)


def test_no_module_and_no_function_is_too_long() -> None:
    long = {str(path): count for path in MODULES if (count := len(path.read_text("utf-8").splitlines())) > 400}
    long |= {f"{path}:{name}": length for path in MODULES for name, length in _functions(path) if length > 100}
    assert long == {}


def test_imports_make_no_circle() -> None:
    """Of modules; imports inside of functions and those for types alone count."""
    graph = grimp.build_graph("rekindle", include_external_packages=False)
    TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1
