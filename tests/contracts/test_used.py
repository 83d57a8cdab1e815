# SPDX-License-Identifier: Apache-2.0
"""Nothing in the package is there for the tests alone: whatever a module defines, the package itself names somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from rekindle.cli import COMMANDS
from rekindle.data.published.named import DATASETS
from tests.contracts.source import modules

ALLOWED: dict[str, str] = {
    "rekindle:*": "the face, which users call",
    "rekindle.objectives.plain:*": "equations as they are printed, for users and as oracles of the fast ones",
    "rekindle.objectives.contributions:contributions": "TEC's figure 5, for users; methods log one of its two shares",
    "rekindle.matrix.run:compare_grid": "`rekindle compare --grid` as a Python call",
    "rekindle.measuring.looking:similarity": "model, image and point in, map and mask out: one call for users",
    "rekindle.networks.checkpoints.tensors:write_checkpoint": "a backbone as one file, for users: after `fold`, for example",
    "rekindle.exporting.modeling_rekindle:RekindleModel": "transformers loads it by the name that config.json gives",
    "rekindle.bench.counting:counting": "counts a real step, which the planned costs are held against",
}
"""What nobody in the package calls, and why it is there all the same; `*` is all of a module."""
PLACE = re.compile(r"[\w.]+:\w+")
IMPORT = re.compile(r"from ([\w.]+) import (\w+)")


def _defined(tree: ast.Module) -> Iterator[tuple[tuple[str, ...], ast.stmt]]:
    """What each statement at the top of a module defines: a function, a class, constants."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield (node.name,), node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            names = tuple(p.id for p in parts if isinstance(p.ctx, ast.Store) and not p.id.startswith("__"))
            if names:
                yield names, node


def _named_elsewhere(trees: Mapping[str, ast.Module]) -> set[str]:
    """`module:Name` of all that a module imports or reads of another, or that a string names in this form."""
    found = set()
    for tree in trees.values():
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
                aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if PLACE.fullmatch(node.value) else set()
                found |= {
                    f"{module}:{name}" for module, name in IMPORT.findall(node.value)
                }  # a program for another process
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                found.add(f"{aliases[node.value.id]}:{node.attr}")
    return found


def unused(trees: Mapping[str, ast.Module], known: Collection[str] = ()) -> list[str]:
    """`module:Name` of what is named neither elsewhere nor in its own module outside its definition.

    Args: known, further names in use, for example those that a table puts together.
    """
    elsewhere = _named_elsewhere(trees) | {*known}
    found = []
    for module, tree in trees.items():
        for names, definition in _defined(tree):
            inside = {id(node) for node in ast.walk(definition)}
            is_read = any(
                isinstance(node, ast.Name)
                and node.id in names
                and isinstance(node.ctx, ast.Load)
                and id(node) not in inside
                for node in ast.walk(tree)
            )
            if not is_read and not any(f"{module}:{name}" in elsewhere for name in names):
                found.append(f"{module}:{names[0]}")
    return found


def test_what_the_package_defines_it_uses() -> None:
    tables = {f"{module}:run" for module, _ in COMMANDS.values()} | {data.reader for data in DATASETS.values()}
    found = unused(modules(), tables)
    left = [name for name in found if name not in ALLOWED and f"{name.partition(':')[0]}:*" not in ALLOWED]
    assert not left, "only tests name these; use them, strike them, or say in ALLOWED why they stay: " + ", ".join(left)
    stale = [name for name in ALLOWED if not name.endswith(":*") and name not in found]
    assert not stale, "strike from ALLOWED what is used or gone: " + ", ".join(stale)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def planted(): return planted()\n", ["ours.a:planted"]),
        ("PLANTED: int = 3\n", ["ours.a:PLANTED"]),
        ("class Planted: ...\n", ["ours.a:Planted"]),
        ("A, B = 1, 2\n", ["ours.a:A"]),
        ("A, B = 1, 2\nprint(B)\n", []),
        ("def used(): ...\n_call = used\nprint(_call)\n", []),
        ("def imported(): ...\ndef read(): ...\ndef told(): ...\n", []),
    ],
)
def test_the_search_finds_what_nobody_calls(source: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.py").write_text(source)
    (tmp_path / "ours" / "b.py").write_text(
        "from ours.a import imported\nfrom ours import a as other\nprint(imported, other.read, 'ours.a:told')\n"
    )
    assert unused(modules(tmp_path)) == expected
