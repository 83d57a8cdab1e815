# SPDX-License-Identifier: Apache-2.0
"""`rekindle export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rekindle.adapters import kinds_that_fold
from rekindle.cli.arguments import begin
from rekindle.cli.catalogue import told
from rekindle.exporting import FORMATS
from rekindle.exporting.options import ExportOptions

EPILOGUE = """
also: --json, --debug. Every format is a folder with README.md, the model card. The export fails, and leaves nothing,
if the written model does not give the original's tokens. The formats:
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle export --help`."""
    adapters = f"Adapters that fold into weights: {kinds_that_fold()}; not so: {kinds_that_fold(False)}."
    if (begun := begin(arguments, ExportOptions, "export", f"{EPILOGUE}\n{told(FORMATS)}\n\n{adapters}")) is None:
        return 0
    options, is_json = begun
    print(f"rekindle export: {options.model or '?'} as {options.format or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.exporting.job import run_export

    done = run_export(options, watcher=TerminalWatcher())
    parity = done.parity
    if is_json:
        found = {
            "max_abs_difference": parity.difference,
            "largest_value": parity.largest,
            "sizes": [list(size) for size in parity.sizes],
            "elsewhere": [{"size": list(size), "max_abs_difference": d} for size, d in parity.elsewhere.items()],
        }
        print(json.dumps({"out": str(done.out), "format": done.format, "files": list(done.files), "parity": found}))
        return 0
    print(f"done: {', '.join(done.files)} in {done.out}")
    print(f"parity: {parity}")
    for (height, width), difference in parity.elsewhere.items():
        print(f"at {height} x {width} px, where positions follow another rule: {difference:.1e} (see README.md)")
    return 0
