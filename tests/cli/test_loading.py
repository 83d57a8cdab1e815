# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys


def test_what_was_loaded_without_looking_for_garbage_is_looked_at_in_the_end() -> None:
    """Handlers run last in, first out: this one sees what libraries see that count what is left."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from rekindle.cli import loading\n"
        "with loading(): import json\n"
        "assert gc.get_freeze_count() > 0"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0"]
