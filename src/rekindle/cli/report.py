# SPDX-License-Identifier: Apache-2.0
"""`rekindle report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rekindle.cli.arguments import begin
from rekindle.report.options import ReportOptions

EPILOGUE = """
also: --json, --debug. The page holds everything: it opens from disk, without a network and without Python. A run that stopped
early, was never compared, or lacks something else gets a page too, which says what is missing.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle report --help`."""
    if (begun := begin(arguments, ReportOptions, "report", EPILOGUE)) is None:
        return 0
    options, is_json = begun
    print(f"rekindle report: {', '.join(options.runs) or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.report.job import run_report

    done = run_report(options, watcher=TerminalWatcher())
    if is_json:
        told = {
            "report": str(done.page),
            "bytes": done.bytes,
            "seconds": round(done.seconds, 2),
            "verdict": done.verdict,
            "missing": done.missing,
        }
        print(json.dumps(told))
        return 0
    print(done.verdict)
    for line in done.missing:
        print(f"missing: {line}")
    if done.pictures:
        print(f"{len(done.pictures)} pictures in {options.pictures}")
    print(f"done: {done.page} ({done.bytes / 2**20:.2f} MiB, {done.seconds:.1f} s)")
    return 0
