# SPDX-License-Identifier: Apache-2.0
"""Tables of names: what stands under a name is imported when it is asked for. Torch-free."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rekindle.core.errors import unknown_name


def imported(place: str) -> Any:
    """Import what `module:Name` says."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def import_named(table: Mapping[str, str], kind: str, name: str) -> Any:
    """Import what a table of `module:Name` strings holds under `name`. Raises RequestError for an unknown name."""
    if name not in table:
        raise unknown_name(kind, name, table)
    return imported(table[name])
