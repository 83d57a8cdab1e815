# SPDX-License-Identifier: Apache-2.0
"""Run a file of scripts/ as its user does, in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run_script(name: str, *arguments: object) -> None:
    """Run scripts/NAME.py with these arguments; it prints and writes as from a shell."""
    path = str(SCRIPTS / f"{name}.py")
    with patch.object(sys, "argv", [path, *map(str, arguments)]):
        runpy.run_path(path, run_name="__main__")


def function_of(name: str, function: str) -> Callable[..., Any]:
    """A function of scripts/NAME.py."""
    found: Callable[..., Any] = runpy.run_path(str(SCRIPTS / f"{name}.py"))[function]
    return found
