# SPDX-License-Identifier: Apache-2.0
"""A name with an underscore stays in its module: what another one needs has a public name and a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.contracts.source import is_private, modules


def _own(tree: ast.Module) -> set[str]:
    """Private names that a module defines: functions, classes, methods, constants, attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def trespasses(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Where a module imports a private name of another one of ours, or asks an object for one that only others define."""
    own = {name: _own(tree) for name, tree in trees.items()}
    packages = {name.partition(".")[0] for name in trees}
    for name, tree in trees.items():
        others = {n for other, names in own.items() if other != name for n in names} - own[name]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in packages:
                yield from (f"{name}:{node.lineno} imports {a.name}" for a in node.names if is_private(a.name))
            elif isinstance(node, ast.Attribute) and node.attr in others:
                if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                    yield f"{name}:{node.lineno} reads {ast.unparse(node)}"


def test_no_module_uses_a_private_name_of_another() -> None:
    assert list(trespasses(modules())) == []


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.py").write_text("def _f(): ...\nclass A:\n    def _g(self): ...\n")
    (tmp_path / "ours" / "b.py").write_text(
        "from ours.a import A, _f\nimport torch\ndef h(a: A): return a._g(), torch._C, a._parameters\n"
    )
    assert list(trespasses(modules(tmp_path))) == ["ours.b:1 imports _f", "ours.b:3 reads a._g"]
