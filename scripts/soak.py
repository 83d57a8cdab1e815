# SPDX-License-Identifier: Apache-2.0
"""Resident memory of a long GLARE training, step by step, as `rekindle pretrain` does it in one process.

    python scripts/soak.py --out soak.json [--steps 2000] [--precision bf16] [--sizes one] [--most-growth 1]

Images are made from the seed: of one size, or each of another one. The level of a step is the highest resident memory after any
of the 50 steps that end with it (the heap is trimmed now and then, and between two trimmings memory rises by 1 %); growth is the
last step's level over that of step --from-step. Decoded images are kept during the first epoch in memory that counts as shared.
The exit code is 1 where memory grows by more than --most-growth per cent. A run that is stopped (SIGTERM) tells what it saw.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.bench.running import describe_machine
from rekindle.bench.synthetic import jpeg
from rekindle.core.heap import SteadyHeap, own_memory_bytes
from rekindle.engine.watcher import StepReport
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import pretrain

EVERY, LEVEL_STEPS = 10, 50
NARROW = "vit:width=96,depth=4,heads=3,patch=14,img=112"


class Notes:
    """A watcher that notes what memory is taken after every step."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.own: list[int] = []
        self.peak: list[int] = []

    def message(self, text: str) -> None:
        print(text, file=sys.stderr)

    def step(self, report: StepReport) -> None:
        self.resident.append(report.memory_bytes)
        self.own.append(own_memory_bytes())
        self.peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)

    def close(self) -> None: ...

    def level(self, step: int) -> int:
        """The highest resident memory after any of the steps that end with this one."""
        return max(self.resident[max(0, step - LEVEL_STEPS) : step])

    def rows(self) -> list[dict[str, int]]:
        """Bytes after every tenth step: resident, of this process alone, shared or mapped, and the highest so far."""
        steps = sorted({1, len(self.own), *range(EVERY, len(self.own) + 1, EVERY)})
        values = [(self.resident[s - 1], self.own[s - 1], self.peak[s - 1]) for s in steps]
        return [
            {
                "step": step,
                "resident_bytes": resident,
                "own_bytes": own,
                "shared_bytes": resident - own,
                "peak_bytes": peak,
            }
            for step, (resident, own, peak) in zip(steps, values, strict=True)
        ]


def make_images(folder: Path, count: int, sizes: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for number in range(count):
        height, width = (int(side) for side in draw.integers(160, 520, 2)) if sizes == "many" else (360, 480)
        (folder / f"{number:04}.jpg").write_bytes(jpeg(height, width, seed, number))


def run_options(asked: argparse.Namespace, images: Path, out: Path) -> dict[str, Any]:
    return {
        "images": str(images),
        "out": str(out),
        "method": "glare",
        "backbone": asked.backbone,
        "init": "random" if asked.backbone.startswith("vit:") else "pretrained",
        "train": asked.train,
        "steps": asked.steps,
        "batch_size": asked.batch_size,
        "precision": asked.precision,
        "accelerator": "cpu",
        "seed": asked.seed,
        "views": {"global_size_px": asked.global_px, "local_size_px": asked.local_px, "num_local": asked.num_local},
        "adapter": {"rank": 64, "in_full_training": True},
        "data": {"num_workers": asked.workers},
        "engine": {"micro_batch_size": asked.batch_size},
        "glare": {"num_prototypes": asked.prototypes, "head_hidden": asked.head},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=NARROW, help="vit:... starts from random weights")
    parser.add_argument("--train", choices=["all", "adapters"], default="all")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--from-step", type=int, default=200)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--sizes", choices=["one", "many"], default="many", help="of the images")
    parser.add_argument("--num-images", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--global-px", type=int, default=56)
    parser.add_argument("--local-px", type=int, default=28)
    parser.add_argument("--num-local", type=int, default=2)
    parser.add_argument("--prototypes", type=int, default=512)
    parser.add_argument("--head", type=int, default=512, help="width of the projection head")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--untrimmed", action="store_true", help="leave the heap alone, as before")
    parser.add_argument("--most-growth", type=float, help="per cent; more than that is an exit code of 1")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if not 0 < asked.from_step < asked.steps:
        parser.error(f"--from-step {asked.from_step} must lie before the last step, {asked.steps}")
    torch.set_num_threads(1)
    if asked.untrimmed:
        SteadyHeap.after_step = lambda self: None  # type: ignore[method-assign]
    notes = Notes()
    with tempfile.TemporaryDirectory(prefix="rekindle-soak-") as scratch:
        images = Path(scratch, "images")
        images.mkdir()
        make_images(images, asked.num_images, asked.sizes, asked.seed)
        pretrain(resolve({}, run_options(asked, images, Path(scratch, "run")), file_name="soak"), watcher=notes)
    last = len(notes.resident)
    if last <= asked.from_step:
        print(f"stopped after {last} steps, before step {asked.from_step}: nothing to compare", file=sys.stderr)
        return 2
    growth = {
        "resident": 100 * (notes.level(last) / notes.level(asked.from_step) - 1),
        "peak": 100 * (notes.peak[-1] / notes.peak[asked.from_step - 1] - 1),
    }
    case = {name: value for name, value in vars(asked).items() if name not in ("out", "most_growth")}
    told = {
        "case": {**case, "backbone": Path(asked.backbone).name},
        "machine": describe_machine(1),
        "growth_percent": {name: round(value, 3) for name, value in growth.items()},
        "steps": notes.rows(),
    }
    asked.out.write_text(json.dumps(told) + "\n", encoding="utf-8")
    print(
        f"{asked.precision}, step {asked.from_step} to {last}: resident {growth['resident']:+.2f} %, peak "
        f"{growth['peak']:+.2f} %; {notes.resident[-1] / 2**20:.0f} MiB at the end, {notes.peak[-1] / 2**20:.0f} at most"
    )
    return int(asked.most_growth is not None and growth["resident"] > asked.most_growth)


if __name__ == "__main__":
    sys.exit(main())
