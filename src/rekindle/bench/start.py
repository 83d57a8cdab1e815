# SPDX-License-Identifier: Apache-2.0
"""Start-up benchmark: from the command to the first completed step, in fresh processes, for growing numbers of files.

A process runs what `rekindle pretrain` runs, with a watcher that takes the time of every message. Times count from
the moment at which the process was asked for, so the interpreter's own start is in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rekindle.bench.options import BenchOptions
from rekindle.bench.synthetic import write_images
from rekindle.bench.table import bench_of
from rekindle.bench.timing import SideTimes, threads_fixed
from rekindle.core.errors import RekindleError

if TYPE_CHECKING:
    from rekindle.engine.watcher import StepReport
    from rekindle.pretraining.options import Resolved

SIDE_PX = 64
"""Side of the files: what is measured is finding and opening them, not the decoding of large ones."""
PARTS = ("imports", "finding files", "model", "method", "first batch", "first step")
_PYTHON = (sys.executable, "-W", "ignore", "-c")
_CHILD = (
    "from rekindle.cli import loading; from rekindle.cli.arguments import parse_run; from rekindle.bench.start import child; "
    "child(parse_run, loading)"
)


def run(options: BenchOptions, case: Mapping[str, object], message: Callable[[str], None]) -> list[SideTimes]:
    """Time `import rekindle`, `rekindle --help`, and runs on a hundredth, a tenth and all of the files."""
    rounds = options.rounds or bench_of(options).rounds
    most = int(str(case["num_images"]))
    sides: dict[str, Callable[[], tuple[float, dict[str, float]]]] = {
        "import rekindle": partial(_time_command, "import rekindle"),
        "rekindle --help": partial(_time_command, "from rekindle.cli import main; main(['--help'])"),
    }
    times: dict[str, list[tuple[float, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch, threads_fixed(options.threads):
        for count in sorted({max(1, most // 100), max(1, most // 10), most}):
            message(f"making {count} files")
            folder = write_images(Path(scratch, str(count)), count, height=SIDE_PX, width=SIDE_PX, seed=options.seed)
            sides[f"{count} files"] = partial(_time_run, _arguments(case, folder, count))
        for turn in range(options.warmup + rounds):
            for label, side in sides.items():
                took, split = side()
                is_warm = turn >= options.warmup
                message(
                    f"{label}: {'round' if is_warm else 'warm-up'} {turn + 1 - is_warm * options.warmup}, {took:.3f} s"
                )
                times.setdefault(label, []).append((took, split))
    return [_measured(label, taken[options.warmup :]) for label, taken in times.items()]


def _measured(label: str, taken: Sequence[tuple[float, dict[str, float]]]) -> SideTimes:
    split = {part: round(median(s[part] for _, s in taken), 3) for part in taken[0][1]}
    return SideTimes(label, tuple(took for took, _ in taken), 0, 0.0, 0, 0, {"split": split} if split else {})


def _arguments(case: Mapping[str, object], folder: Path, count: int) -> list[str]:
    asked = {
        "images": folder,
        "backbone": case["backbone"],
        "method": case["method"] or "glare",
        "train": "all",
        "init": "random",
        "steps": 1,
        "batch-size": min(int(str(case["batch_size"])), count),
        "accelerator": "cpu" if case["device"] == "cpu" else "gpu",
        "precision": case["precision"],
        "seed": case["seed"],
    }
    return [part for name, value in asked.items() for part in (f"--{name}", str(value))]


def _time_command(code: str) -> tuple[float, dict[str, float]]:
    began = time.time()
    _call([*_PYTHON, code])
    return time.time() - began, {}


def _time_run(arguments: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Seconds from the request to the first completed step, and of each part."""
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
        marks = Path(scratch, "marks.json")
        began = time.time()
        _call([*_PYTHON, _CHILD, str(marks), *arguments, "--out", str(Path(scratch, "run"))])
        at: dict[str, float] = json.loads(marks.read_text(encoding="utf-8"))
    ends = [at[part] - began for part in PARTS]
    return ends[-1], {part: end - start for part, start, end in zip(PARTS, [0.0, *ends], ends, strict=False)}


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RekindleError(f"bench: {command[-1]} ended with code {done.returncode}:\n{done.stderr}")


def child(
    parse_run: Callable[..., tuple[Resolved, object]], loading: Callable[[], AbstractContextManager[None]]
) -> None:
    """In a fresh process: do what `rekindle pretrain` does. argv: where to write the times, then its options."""
    marks, *arguments = sys.argv[1:]
    with loading():
        resolved, _ = parse_run(arguments, program="pretrain")
        from rekindle.pretraining.run import pretrain

    watcher = _Marks(resolved.options.batch_size)
    pretrain(resolved, watcher=watcher)
    Path(marks).write_text(json.dumps(watcher.at), encoding="utf-8")


class _Marks:
    """A watcher that takes the time of each part's end."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.at = {"imports": time.time()}

    def message(self, text: str) -> None:
        """The first three lines of a run end three parts."""
        part = next((part for part in PARTS[:4] if part not in self.at), None)
        if part is not None:
            self.at[part] = time.time()

    def step(self, report: StepReport) -> None:
        """The loop's clock starts when it asks for the first batch; what was no waiting was the step."""
        self.at["first step"] = time.time()
        self.at["first batch"] = time.time() - (1 - report.data_wait) * self._batch_size / report.images_per_s

    def close(self) -> None: ...
