# SPDX-License-Identifier: Apache-2.0
"""`rekindle pretrain`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rekindle.cli import loading
from rekindle.cli.arguments import asked_tree, parse_run, print_help, take
from rekindle.core.processor import share_cores
from rekindle.core.tables import import_options
from rekindle.methods import METHODS
from rekindle.pretraining.options import PretrainOptions

EPILOGUE = """
also: --config FILE (a YAML run file with the same names), --resume (continue the run in --out), --json, --debug.
The options of a method stand under its name: `rekindle pretrain --method glare --help` lists them as well.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle pretrain --help`."""
    if "--help" in arguments or "-h" in arguments:
        name = take(arguments, values=["--method"]).values.get("--method")
        method = None if name is None else (name, import_options(METHODS, "method", name))
        print_help(method, PretrainOptions, program="pretrain")
        print(EPILOGUE)
        return 0
    with loading():
        resolved, taken = parse_run(arguments, program="pretrain")
        print(
            f"rekindle pretrain: {resolved.options.method} on {resolved.options.images or 'a run to resume'}",
            file=sys.stderr,
        )
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        from rekindle.cli.terminal import TerminalWatcher
        from rekindle.core.distributed import rank
        from rekindle.pretraining.requests import resolve_resumed
        from rekindle.pretraining.run import pretrain

    share_cores(resolved.options.devices)
    resume = "--resume" in taken.flags
    if resume and "--config" not in taken.values:
        resolved = resolve_resumed(resolved.options.out, asked_tree(resolved))
    result = pretrain(resolved, resume=resume, watcher=TerminalWatcher())
    if rank() > 0:
        return 0
    if "--json" in taken.flags:
        print(json.dumps({**asdict(result), "run": str(result.run)}))
    elif result.is_finished:
        print(
            f"done: {result.steps} steps in {result.seconds:.0f} s; next: rekindle compare BASE {result.run} --data DATA"
        )
    else:
        print(f"stopped after step {result.steps}; continue with: rekindle pretrain --out {result.run} --resume")
    return 0
