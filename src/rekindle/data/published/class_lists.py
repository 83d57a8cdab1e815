# SPDX-License-Identifier: Apache-2.0
"""The publishers' class lists that are too long for a line: classes/*.json."""

from __future__ import annotations

import json
from importlib import resources


def class_names(name: str) -> list[str]:
    """Return the class names in classes/<name>.json; the position is the id."""
    names = json.loads(_text(name))
    assert isinstance(names, list)
    return names


def coco_categories() -> dict[int, str]:
    """Return COCO's categories by their ids: 80 things from 1 to 90, 91 stuffs from 92 to 182."""
    return {int(number): name for number, name in json.loads(_text("coco")).items()}


def _text(name: str) -> str:
    return (resources.files("rekindle.data.published") / "classes" / f"{name}.json").read_text(encoding="utf-8")
