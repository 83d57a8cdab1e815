# SPDX-License-Identifier: Apache-2.0
"""`rekindle plan`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rekindle.cli.arguments import parse_run, take
from rekindle.core.errors import RequestError

if TYPE_CHECKING:
    from rekindle.pretraining.forecast import Forecast

HELP = """usage: rekindle plan [options of rekindle pretrain] [--measure STEPS] [--json]

What a run would take, before its first step: memory, time and disk on this machine, and what is chosen for so many images
(steps, batch, warm-up, ...). It prepares the run as `rekindle pretrain` would, does a few of its steps, and writes nothing.

  --measure STEPS      steps whose time is taken, after one that does not count (default: 3; 0: none, no time is told)
  --config FILE        a YAML run file; all options of `rekindle pretrain --help` are taken
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle plan --help`."""
    if {"--help", "-h"} & {*arguments}:
        print(HELP)
        return 0
    own = take(arguments, values=["--measure"])
    text = own.values.get("--measure", "3")
    if not text.isascii() or not text.isdigit():
        raise RequestError(f"--measure {text}: give a number of steps, 0 or more")
    resolved, taken = parse_run(own.rest, program="plan")
    print(f"rekindle plan: {resolved.options.method} on {resolved.options.images or '?'}", file=sys.stderr, flush=True)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.pretraining.forecast import forecast

    found = forecast(resolved, measured_steps=int(text), watcher=TerminalWatcher())
    print(json.dumps(found.to_dict()) if "--json" in taken.flags else plan_lines(found))
    return 0


def plan_lines(found: Forecast) -> str:
    """A forecast as lines to read."""
    lines = [
        f"images   {found.images}",
        f"steps    {found.steps} of {found.batch_size} images, {found.share_size} at a time: {found.epochs:.1f} epochs; "
        f"warm-up {found.warmup_steps}, heads alone {found.head_steps}",
        f"trains   {found.trained_parameters / 1e6:.2f} M numbers",
    ]
    if found.step_seconds is not None and found.total_seconds is not None and found.memory_bytes is not None:
        whole = timedelta(seconds=round(found.total_seconds))
        lines += [
            f"time     {whole} at {found.step_seconds:.2f} s a step, {found.images_per_s:.1f} images/s (median of "
            f"{found.measured_steps}); probes, checkpoints and loading come on top",
            f"memory   {found.memory_bytes / 2**30:.2f} GiB while measuring",
        ]
    lines.append(f"disk     {found.disk_bytes / 2**20:.0f} MiB for checkpoints and the model")
    if found.chosen:
        lines.append("chosen for so many images:")
        lines += [f"  {name} = {json.dumps(e['value'])}: {e['why']}" for name, e in found.chosen.items()]
    return "\n".join(lines)
