# SPDX-License-Identifier: Apache-2.0
"""T100 benchmark: minutes of 100 epochs of continual pre-training, a row per method (GLARE, table 8: UDI, FLSL and GLARE).

A round is a run of two epochs through `rekindle.pretraining.run`, from a saved base of random weights whose adapters train. T100
is the first epoch, which decodes, and 99 times the second; an epoch of more than `MOST_STEPS` steps is cut short and scaled up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rekindle.adapters.saved import Lineage, load_backbone, model_hash, save_model
from rekindle.bench.epoch import TwoEpochs, images_of
from rekindle.bench.options import BenchOptions
from rekindle.bench.stage import taken
from rekindle.bench.table import bench_of, sides_of
from rekindle.bench.timing import SideTimes, measure
from rekindle.networks.options import NetworkOptions

EPOCHS = 100


def run(options: BenchOptions, case: Mapping[str, object], message: Callable[[str], None]) -> list[SideTimes]:
    """Measure two epochs of every method, and make a row of what a hundred would take."""
    rounds = options.rounds or bench_of(options).rounds
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
        prepared = prepare(case, Path(scratch))
        runs = measure(
            sides_of(options), prepared, rounds=rounds, warmup=options.warmup, threads=options.threads, message=message
        )
    return [hundred_epochs(side, options.warmup, taken(case, "num_images", int)) for side in runs]


def prepare(case: Mapping[str, object], scratch: Path) -> dict[str, object]:
    """Return the case with images and a base to go on from, a model folder of random weights."""
    name, base = taken(case, "backbone", str), scratch / "base"
    backbone, _ = load_backbone(name, init="random", seed=taken(case, "seed", int))
    lineage = Lineage(
        base=name,
        base_hash=model_hash(backbone),
        base_licence=None,
        train="all",
        adapter=None,
        network=NetworkOptions(),
        method="none",
        steps=0,
    )
    save_model(base, backbone, (), lineage)
    return {**case, "source": str(images_of(case, scratch)), "base": str(base)}


def hundred_epochs(side: SideTimes, warmup: int, num_images: int) -> SideTimes:
    """Return a side's row: seconds of 100 epochs over `num_images` images, from those of its rounds after the warm-up."""
    epochs = side.facts["epochs"]
    assert isinstance(epochs, list)
    seconds = tuple(
        (first["seconds"] + (EPOCHS - 1) * second["seconds"]) * num_images / first["images"]
        for first, second in epochs[warmup:]
    )
    row = SideTimes(side.label, seconds, EPOCHS * num_images, side.setup_seconds, side.baseline_bytes, side.peak_bytes)
    row.facts["T100"] = f"{row.median / 60:.1f} min"
    return row


class _Continued(TwoEpochs):
    """A side that goes on from a base with one method; its subclasses say which."""

    STORE_GIB = None

    def asked(self, out: Path) -> dict[str, object]:
        """Adapters, from the saved base."""
        case = self._case
        return super().asked(out) | {
            "backbone": case["base"],
            "init": "pretrained",
            "train": case["train"],
            "adapter": {"rank": case["rank"], "blocks": case["blocks"]},
            "network": {"add_register": True},  # the second class token of UDI, from which all three of the table start
        }


class Udi(_Continued):
    """UDI."""

    METHOD = "udi"


class Flsl(_Continued):
    """FLSL."""

    METHOD = "flsl"


class Glare(_Continued):
    """GLARE."""

    METHOD = "glare"
