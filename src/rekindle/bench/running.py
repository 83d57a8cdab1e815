# SPDX-License-Identifier: Apache-2.0
"""Benchmark runner: from a request to its figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rekindle.bench.options import BenchOptions
from rekindle.bench.table import LIMIT, bench_of, sides_of
from rekindle.bench.timing import SideTimes, measure
from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.core.processor import instruction_sets
from rekindle.core.tables import imported


@dataclass(frozen=True)
class BenchRow:
    """One side's figures beside ours.

    Attributes:
        measured: what was measured.
        ratio: its time for an image over that of the first side (2 is half as fast).
        limit_share: share of the machine's matrix product rate that its operations reach, in [0, 1]; None if unknown.
    """

    measured: SideTimes
    ratio: float | None
    limit_share: float | None

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return self.measured.to_dict() | {"ratio": self.ratio, "limit_share": self.limit_share}


@dataclass(frozen=True)
class BenchResult:
    """What a bench found.

    Attributes:
        name: of the bench.
        machine: CPU, cores, versions.
        case: what every side received.
        rows: ours first.
    """

    name: str
    machine: dict[str, object]
    case: dict[str, object]
    rows: list[BenchRow]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        rows = [row.to_dict() for row in self.rows]
        return {"bench": self.name, "machine": self.machine, "case": self.case, "sides": rows}


def run_bench(options: BenchOptions, message: Callable[[str], None]) -> BenchResult:
    """Measure what is asked for. Raises RequestError for a wrong request, RekindleError if a side fails."""
    bench, sides = bench_of(options), sides_of(options)
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise RequestError(f"--out {options.out}: its folder does not exist; make it, or name another file")
    case = build_case(options)
    if bench.runner:
        measured: list[SideTimes] = imported(bench.runner)(options, case, message)
    else:
        measured = measure(
            sides,
            case,
            rounds=options.rounds or bench.rounds,
            warmup=options.warmup,
            threads=options.threads,
            message=message,
        )
    result = BenchResult(options.name, describe_machine(options.threads), case, compare_sides(measured))
    if options.out:
        text = json.dumps(result.to_dict(), indent=2) + "\n"
        write_atomically(Path(options.out), lambda stream: stream.write(text.encode()))
    return result


def build_case(options: BenchOptions) -> dict[str, object]:
    """Plain values that every side receives: the options, and what `auto` and None come to."""
    case = options.model_dump(mode="json", exclude={"name", "peer", "rounds", "warmup", "out", "accelerator"})
    bench = bench_of(options)
    case["num_images"] = options.num_images or bench.num_images
    case["backbone"] = options.backbone or bench.backbone
    case["device"] = _device(options.accelerator)
    return case


def _device(accelerator: str) -> str:
    if accelerator == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if accelerator == "gpu":
        raise RequestError("--accelerator gpu: no GPU is visible to torch; use --accelerator cpu, or mend the driver")
    return "cpu"


def compare_sides(measured: list[SideTimes]) -> list[BenchRow]:
    """Set the sides beside the first, and beside the machine's matrix product where it was measured."""
    limit = next((m for m in measured if m.label == LIMIT), None)
    rate = None if limit is None else _flops(limit) / limit.median
    first = measured[0]
    rows = []
    for side in measured:
        share = None if rate is None or not _flops(side) else _flops(side) / side.median / rate
        comparable = side.images > 0 and first.images > 0
        ratio = (side.median / side.images) / (first.median / first.images) if comparable else None
        rows.append(BenchRow(side, ratio, share))
    return rows


def _flops(side: SideTimes) -> float:
    flops = side.facts.get("flops", 0)
    return float(flops) if isinstance(flops, int | float) else 0.0


def describe_machine(threads: int) -> dict[str, object]:
    """What the figures depend on besides the code."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "instruction_sets": list(instruction_sets()),
        "cores": cores,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "rekindle": version("rekindle"),
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
