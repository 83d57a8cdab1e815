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
    from rekindle.pretraining.advice import Advice
    from rekindle.pretraining.forecast import Forecast

HELP = """usage: rekindle plan [options of rekindle pretrain] [--measure STEPS] [--memory-gib GIB] [--json]

What a run would take, before its first step: memory, time and disk on this machine, and what is chosen for so many images
(steps, batch, warm-up, ...). It prepares the run as `rekindle pretrain` would, does a few of its steps, and writes nothing.

  --measure STEPS      steps whose time is taken, after one that does not count (default: 3; 0: none, no time is told)
  --memory-gib GIB     only say what fits into so much memory, or into what is `free`: the cheapest set of measures (trunk in 16,
                       8 or 4 bits, smaller micro-batches, recomputation), what it takes by a count of bytes, and the options to
                       type. Weights are not loaded and need not be there; neither --images nor a GPU are needed (--accelerator
                       gpu plans for one). A plan without this option says the same, and does no step, where the run as it is
                       asked for does not fit into what is free, unless --measure is given
  --config FILE        a YAML run file; all options of `rekindle pretrain --help` are taken
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle plan --help`."""
    if {"--help", "-h"} & {*arguments}:
        print(HELP)
        return 0
    own = take(arguments, values=["--measure", "--memory-gib"])
    text = own.values.get("--measure", "3")
    if not text.isascii() or not text.isdigit():
        raise RequestError(f"--measure {text}: give a number of steps, 0 or more")
    resolved, taken = parse_run(own.rest, program="plan")
    from rekindle.pretraining.advice import advise, memory_asked
    from rekindle.pretraining.network_sizes import brings_sizes

    size = own.values.get("--memory-gib")
    if size is not None:
        if "--measure" in own.values:
            raise RequestError("--memory-gib does no step, so there is nothing to --measure; leave one of the two out")
        return _advise(advise(resolved, memory_asked(size)), as_json="--json" in taken.flags)
    print(f"rekindle plan: {resolved.options.method} on {resolved.options.images or '?'}", file=sys.stderr, flush=True)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.pretraining.forecast import forecast

    if "--measure" not in own.values and resolved.options.images and brings_sizes(resolved.options):
        advice = advise(resolved)
        if not advice.as_asked.fits:
            print("the run as it is asked for does not fit into free memory, so no step is done", file=sys.stderr)
            return _advise(advice, as_json="--json" in taken.flags)
    found = forecast(resolved, measured_steps=int(text), watcher=TerminalWatcher())
    print(json.dumps(found.to_dict()) if "--json" in taken.flags else plan_lines(found))
    return 0


def _advise(advice: Advice, *, as_json: bool) -> int:
    print(json.dumps(advice.to_dict()) if as_json else advice_lines(advice))
    return 0


def advice_lines(advice: Advice) -> str:
    """Advice as lines to read."""
    large, small = advice.views
    fit = advice.proposal
    lines = [
        f"model    {advice.backbone}: {advice.network}; views of {large}/{small} px",
        f"memory   {advice.memory_bytes / 2**30:.2f} GiB ({advice.device}, {advice.precision})",
    ]
    if fit is None:
        least = min(advice.sets, key=lambda one: one.memory.total)
        lines.append(
            f"fits     nothing: {least.setting.told()} takes {least.memory.total / 2**30:.2f} GiB; take smaller views "
            "(--views.global-size-px, --views.num-local), a smaller batch (--batch-size) or a smaller model"
        )
    else:
        lines += [
            f"fits     {fit.setting.told()}: {fit.memory.total / 2**30:.2f} GiB, counted",
            f"options  {' '.join(fit.setting.arguments())}",
            "of these " + ", ".join(f"{n} {b / 2**30:.2f}" for n, b in fit.memory.to_dict().items()),
        ]
    lines.append("sets, the cheapest first, each with the largest micro-batch that fits:")
    lines += [
        f"  {one.setting.told():44} {one.memory.total / 2**30:7.2f} GiB{'' if one.fits else '  does not fit'}"
        for one in advice.sets
    ]
    return "\n".join(lines)


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
