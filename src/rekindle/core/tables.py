# SPDX-License-Identifier: Apache-2.0
"""Tables of names: what stands under a name is imported when it is asked for. Torch-free."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rekindle.core.errors import unknown_name


@dataclass(frozen=True)
class Entry:
    """What a table knows of a name without importing it: all that a newcomer adds besides its own file.

    Attributes:
        code: "module:Name" of the class or function.
        summary: a few words on what it is.
        options: "module:Name" of its options, for help that shall not import the code; None: the code's own `Config`.
    """

    code: str
    summary: str
    options: str | None = None

    @property
    def told(self) -> str:
        """The line of `rekindle list` and of help."""
        return self.summary


def imported(place: str) -> Any:
    """Import what `module:Name` says."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def known_name(table: Collection[str], kind: str, name: str) -> str:
    """Return `name` if the table holds it. Raises ValueError with the nearest known name: for checks of options."""
    if name not in table:
        raise ValueError(str(unknown_name(kind, name, table)))
    return name


def import_named(table: Mapping[str, Entry], kind: str, name: str) -> Any:
    """Import the code that a table holds under `name`. Raises RequestError for an unknown name."""
    return imported(_entry(table, kind, name).code)


def import_options(table: Mapping[str, Entry], kind: str, name: str) -> Any:
    """Import the options of what a table holds under `name`. Raises RequestError for an unknown name."""
    entry = _entry(table, kind, name)
    return imported(entry.code).Config if entry.options is None else imported(entry.options)


def _entry(table: Mapping[str, Entry], kind: str, name: str) -> Entry:
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]
