# SPDX-License-Identifier: Apache-2.0
"""JSON and YAML from anybody: read within bounds, and never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 2**20
"""A description, a class list or a run file is far below this."""
MAX_NODES = 100_000
"""Values in a YAML file, counted as often as aliases repeat them."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises: ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file. Raises: OSError; ValueError where it is not JSON, or larger than `max_bytes`."""
    return parse_json(_content(path, max_bytes))


def read_yaml(path: Path) -> Any:
    """Read plain values of a YAML file; tags that would make objects are refused.

    Raises: OSError; UnicodeDecodeError; yaml.YAMLError, also where aliases refer to themselves or multiply beyond MAX_NODES.
    """
    try:
        content = yaml.safe_load(_content(path, MAX_BYTES))
        _count(content, {}, frozenset())
    except (RecursionError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        why = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise yaml.YAMLError(why) from error
    return content


def _content(path: Path, max_bytes: int) -> str:
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes / 2**20:.0f} MiB")
    return content.decode("utf-8")


def _count(value: Any, known: dict[int, int], above: frozenset[int]) -> int:
    """Values in a tree, aliases unfolded; each is looked at once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in above:
        raise ValueError("an alias refers to what it stands in")
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known, above | {id(value)}) for part in parts)
    if known[id(value)] > MAX_NODES:
        raise ValueError(f"it holds more than {MAX_NODES} values, aliases unfolded")
    return known[id(value)]
