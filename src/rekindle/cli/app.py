# SPDX-License-Identifier: Apache-2.0
"""`rekindle app`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from rekindle.cli.arguments import parse, print_help
from rekindle.prompting.options import AppOptions

EPILOGUE = """
also: --debug. Needs Gradio: pip install 'rekindle[app]'. The page is for this machine alone, and contacts nothing else, unless
--share or another --host is given. `rekindle prompt` gives the same masks without a browser.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle app --help`."""
    if {"--help", "-h"} & {*arguments}:
        print_help(None, AppOptions, program="app")
        print(EPILOGUE)
        return 0
    options = parse(AppOptions, arguments, program="app")
    print(f"rekindle app: {options.model or '?'}", file=sys.stderr, flush=True)
    from rekindle.app.server import run_app
    from rekindle.cli.terminal import TerminalWatcher

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, no upload stays behind
    run_app(options, watcher=TerminalWatcher())
    return 0
