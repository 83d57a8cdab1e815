# SPDX-License-Identifier: Apache-2.0
"""The map is true: rooms are those of the import linter, and every name that leads into the code leads somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rekindle.methods import METHODS
from tests.documents.reading import DOCUMENTS, ROOT

PACKAGE = ROOT / "src" / "rekindle"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LAYERS: dict[str, list[str]] = {c["containers"][0]: c["layers"] for c in CONTRACTS if c["type"] == "layers"}
RUNGS = [layer.split(" | ") for layer in reversed(LAYERS["rekindle"])]
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in CONTRIBUTING.splitlines()
    if re.match(r"\| `\w+` \| \d", line) and (cells := [cell.strip() for cell in line.strip("| ").split("|")])
}
INSIDE = sorted(set(LAYERS) - {"rekindle"})
Floors = list[set[str]]


def test_the_table_has_every_room_on_its_rung_and_no_other() -> None:
    assert {room: int(cells[0]) for room, cells in ROWS.items()} == {
        room: number for number, rooms in enumerate(RUNGS) for room in rooms
    }


@pytest.mark.parametrize("room", ROWS)
def test_a_room_may_import_what_the_linter_allows(room: str) -> None:
    rung, _, said = ROWS[room]
    allowed = {other for rooms in RUNGS[: int(rung)] for other in rooms}
    for contract in CONTRACTS:
        if contract["type"] == "forbidden" and f"rekindle.{room}" in contract["source_modules"]:
            allowed -= {name.removeprefix("rekindle.") for name in contract["forbidden_modules"]}
    assert _named_rooms(said) - {"base"} == allowed


def _named_rooms(said: str) -> set[str]:
    """The rooms of "nothing of ours", "rung 0", "rungs 0 to 2", or names one by one."""
    numbers = [int(number) for number in re.findall(r"\d+", said)]
    names = set(re.findall(r"`(\w+)`", said))
    return names | {room for rooms in (RUNGS[numbers[0] : numbers[-1] + 1] if numbers else []) for room in rooms}


@pytest.mark.parametrize("container", INSIDE)
def test_the_floors_of_a_room_are_those_of_the_linter(container: str) -> None:
    found = re.search(rf"^- `{container.split('.')[1]}`: (.*?)(?=\n- |\n\n)", CONTRIBUTING, re.M | re.S)
    assert found is not None
    told = [set(re.findall(r"`(\w+)`", floor.partition("(")[0])) for floor in found[1].split(">")]
    told = [floor if floor != {"METHODS"} else set(METHODS) for floor in told]
    assert told == _floors(LAYERS[container])


def _floors(layers: list[str]) -> Floors:
    """The floors of a contract; of a room inside it (`shared.heads`) the room, neighbours of one room as one floor."""
    floors: Floors = []
    for layer in layers:
        floor = {name.partition(".")[0] for name in layer.split(" | ")}
        if not floors or floors[-1] != floor:
            floors.append(floor)
    return floors


def test_every_method_has_a_floor() -> None:
    assert {entry.code.split(":")[0] for entry in METHODS.values()} == {f"rekindle.methods.{name}" for name in METHODS}
    assert set(LAYERS["rekindle.methods"][0].split(" | ")) == set(METHODS)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_every_room_of_the_linter_is_there(layers: list[str]) -> None:
    container = next(name for name, own in LAYERS.items() if own is layers)
    for name in (name for layer in layers for name in layer.split(" | ")):
        assert _file(f"{container}.{name}") is not None, name


def test_what_is_touched_to_add_something_is_there() -> None:
    """Every path; of one with an x, the folder. A table that is named stands in the file named before it."""
    part = CONTRIBUTING.partition("## To add something")[2].partition("\n## ")[0]
    for item in re.findall(r"^- \*\*.*?(?=\n- |\n\n)", part, re.M | re.S):
        assert re.search(r"\*\*, \d files?: ", item), item
        last = PACKAGE
        for name in re.findall(r"`([^`]+)`", item):
            if "/" in name or name.endswith((".toml", ".md")):
                base = ROOT if name.startswith(("tests/", "docs/", "README", "pyproject")) else PACKAGE
                last = base / name
                wanted = last.parent if last.stem in ("x", "test_x") else last
                assert wanted.exists(), name
            elif re.fullmatch(r"[A-Z]\w+", name):
                assert last.suffix == ".py" and name in _names(last), f"{name} in {last}"


ROOMS = [room for rooms in RUNGS for room in rooms if room != "__main__"]
ROOMS_INSIDE = [
    f"{room}/{folder.name}"
    for room in ("networks", "data", "methods", "evaluation")
    for folder in sorted((PACKAGE / room).iterdir())
    if (folder / "__init__.py").exists()
]


def test_the_architecture_shows_every_room_and_its_rung() -> None:
    """The tree of the document, by indentation: `name/` or `name.py`, what it holds, and its rung."""
    tree = ARCHITECTURE.partition("```text")[2].partition("```")[0]
    shown: dict[str, str] = {}
    room = ""
    for line in tree.splitlines():
        found = re.match(r"^( {2,6})(\w+)(?:/|\.py)\s+.*?(?:\s{2,}(\d+))?$", line)
        if found is not None and len(found[1]) == 2:
            room = found[2]
            shown[room] = found[3] or ""
        elif found is not None:
            shown[f"{room}/{found[2]}"] = ""
    del shown["__init__"]
    rungs = {room: str(number) for number, rooms in enumerate(RUNGS) for room in rooms}
    assert shown == rungs | dict.fromkeys(ROOMS_INSIDE, "")


PRESENT = "".join(path.read_text() for path in DOCUMENTS if path.name != "CHANGELOG.md")
DOCUMENTED = sorted(set(re.findall(r"(?<![\w/.-])rekindle(?:\.[a-zA-Z_]\w*)+", PRESENT)))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_name_of_the_code_is_there(name: str) -> None:
    assert exists(name), name


def test_every_python_file_that_a_document_names_is_there() -> None:
    """But those of a newcomer: x, test_x, NAME."""
    named = {path for path in re.findall(r"`([\w/]+/\w+\.py)`", PRESENT) if not re.search(r"\bx\.|_x\.|NAME", path)}
    assert len(named) > 20
    assert not [path for path in named if not ((ROOT / path).is_file() or (PACKAGE / path).is_file())]


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("rekindle.engine.loop.train") and exists("rekindle.methods.base.Method.loss")
    assert exists("rekindle.objectives") and exists("rekindle.pretrain") and exists("rekindle.data.KINDS")
    for name in ("rekindle.engine.loop.trial", "rekindle.methods.base.Method.lose", "rekindle.planning"):
        assert not exists(name)


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one defines, to any depth. Nothing is imported."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = _file(".".join(parts[:length]))
        if path is not None:
            return length == len(parts) or ".".join(parts[length:]) in _names(path)
    return False


def _file(module: str) -> Path | None:
    path = PACKAGE.parent / Path(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@cache
def _names(path: Path) -> frozenset[str]:
    """What a file defines: functions, classes, their members, values."""
    return frozenset(_defined(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> list[str]:
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            found += [prefix + node.name, *_defined(node.body, f"{prefix}{node.name}.")]
        elif isinstance(node, ast.FunctionDef):
            found.append(prefix + node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [prefix + target.id for target in targets if isinstance(target, ast.Name)]
    return found
