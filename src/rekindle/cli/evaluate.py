# SPDX-License-Identifier: Apache-2.0
"""`rekindle evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rekindle.cli.arguments import parse, print_help, take
from rekindle.evaluation.scores.score import shown
from rekindle.measuring.options import SMALL, EvaluateOptions, with_protocols

EPILOGUE = "also: --json, --debug. With --protocol NAME --help, the options of that protocol are listed as well."


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle evaluate --help`."""
    chosen = take(arguments, values=["--protocol", "--preset"]).values
    named, preset = chosen.get("--protocol"), chosen.get("--preset", SMALL)
    if {"--help", "-h"} & {*arguments}:
        model = EvaluateOptions if named is None else with_protocols(EvaluateOptions, [named], preset)
        print_help(None, model, program="evaluate")
        print(EPILOGUE)
        return 0
    taken = take(arguments, flags=["--json"])
    protocol = named or EvaluateOptions.model_fields["protocol"].default
    options = parse(with_protocols(EvaluateOptions, [protocol], preset), taken.rest, program="evaluate")
    print(f"rekindle evaluate: {options.protocol} of {options.model or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.measuring.evaluate import result_path, run_evaluate

    result = run_evaluate(options, watcher=TerminalWatcher())
    if taken.flags:
        print(result.model_dump_json())
        return 0
    width = max(map(len, result.metrics))
    for name, value in result.metrics.items():
        print(f"{name:<{width}}  {shown(name, value):>8}")
    print(f"written to {result_path(options)}")
    if options.save_model:
        print(f"fine-tuned backbone in {options.save_model}, a MODEL like any other")
    return 0
