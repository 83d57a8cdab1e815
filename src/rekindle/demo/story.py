# SPDX-License-Identifier: Apache-2.0
"""The demo: scenes of a new domain, GLARE on them from the built-in base, the verdict, and the report.

Each part is what a user would call: `pretrain`, `compare`, `report`, the checks. Only the scenes are special.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rekindle
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import write_atomically
from rekindle.data.images import find_images
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.data.scenes import write_scenes
from rekindle.demo.options import DemoOptions
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import pretrain
from rekindle.report.job import run_report
from rekindle.report.options import ReportOptions
from rekindle.report.verdicts import VerdictRow

BASE = Path(__file__).with_name("base.safetensors")
DOMAIN, SIZE_PX = "field", 96
MARKER = "demo.json"
PARTS = ("data", "unlabelled", "run", "comparison", "pictures", "report.html", MARKER)


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind.

    Attributes:
        out: its folder.
        page: the report.
        verdict: one sentence over all protocols.
        rows: one per protocol.
        pictures: the same pictures as files.
        seconds: time of each part, and of the whole.

    """

    out: Path
    page: Path
    verdict: str
    rows: list[VerdictRow]
    pictures: list[Path]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "out": str(self.out),
            "page": str(self.page),
            "verdict": self.verdict,
            "rows": [row.to_dict() for row in self.rows],
            "pictures": [str(path) for path in self.pictures],
            "seconds": self.seconds,
        }


def run_demo(options: DemoOptions, *, watcher: Watcher | None = None) -> DemoResult:
    """Tell the whole story into `options.out`.

    Raises: RequestError if the folder holds something else, before anything is written.
    """
    watcher, clock, out = watcher or LoggingWatcher(), _Clock(), Path(options.out)
    claim(out, options)
    watcher.message(f"1/5 drawing scenes of the domain '{DOMAIN}' into {out / 'data'}")
    draw(options, out)
    clock.lap("scenes")
    watcher.message("2/5 checking images and masks")
    watcher.message(check_scenes(out))
    clock.lap("check")
    watcher.message("3/5 adapting the base to the new domain with GLARE, without labels; only adapters move")
    resolved = resolve({}, request(options, out))
    trained = pretrain(resolved, watcher=watcher)
    if not trained.is_finished:
        raise RekindleError("the demo was stopped while training; run it again")
    clock.lap("pretrain")
    watcher.message(f"4/5 comparing base and adapted model on {options.val} labelled scenes neither has seen")
    rekindle.compare(BASE, [out / "run"], out / "data", watcher=watcher, **protocol_settings(options, out))
    clock.lap("compare")
    watcher.message("5/5 drawing pictures and the report")
    told = run_report(report_options(out), watcher=watcher)
    clock.lap("report")
    result = DemoResult(out, told.page, told.verdict, told.rows, told.pictures, clock.laps)
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    write_atomically(out / MARKER, lambda stream: stream.write(text.encode()))
    return result


def draw(options: DemoOptions, out: Path) -> None:
    """Scenes without labels to adapt on, and other scenes with labels to measure on."""
    write_scenes(
        out / "unlabelled",
        DOMAIN,
        {"all": options.images},
        size_px=SIZE_PX,
        seed=options.seed,
        with_masks=False,
    )
    write_scenes(
        out / "data",
        DOMAIN,
        {"train": options.labelled, "val": options.val},
        size_px=SIZE_PX,
        seed=options.seed,
    )


def check_scenes(out: Path) -> str:
    """Look at every file; return one line about them. Raises: RequestError for data that cannot be used."""
    unlabelled = find_images(str(out / "unlabelled"))
    digests: dict[str, str] = {}
    repeated = 0
    for path in sorted((out / "data" / "images").rglob("*.jpg")) + sorted((out / "unlabelled").rglob("*.jpg")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        repeated += digest in digests
        digests[digest] = str(path)
    counts = []
    for split in ("train", "val"):
        folder = SegmentationFolder(out / "data", split)
        folder.check()
        counts.append(f"{len(folder)} {split}")
    if repeated:
        raise RekindleError(f"{repeated} scenes are there twice, so the verdict would be on images seen in training")
    return f"{len(unlabelled)} images without labels; with masks: {', '.join(counts)}; all fine, none twice"


def request(options: DemoOptions, out: Path) -> dict[str, Any]:
    """Return the options of the run, as `rekindle pretrain --config` would read them."""
    return {
        "images": str(out / "unlabelled"),
        "backbone": str(BASE),
        "method": "glare",
        "recipe": "full",
        "out": str(out / "run"),
        "steps": options.steps,
        "batch_size": 16,
        "seed": options.seed,
        "precision": "fp32",
        "probe": ["health"],
        "every": 60,
        "probe_images": min(32, options.images),
        "views": {
            "global_size_px": 64,
            "local_size_px": 32,
            "num_local": 0,
            "jitter_p": 0.5,
            "brightness": 0.3,
            "contrast": 0.3,
            "grey_p": 0.1,
            "blur_p": [0.3, 0.1, 0.1],
            "blur_sigma": [0.1, 1.0],
            "solarize_p": [0.0, 0.0, 0.0],
        },
        "network": {"drop_path": 0.0},
        "adapter": {"rank": 64, "scale": 1.0},
        "optim": {
            "lr_per_256": 1.5e-3,
            "lr_is_peak": True,
            "final_lr": 1e-5,
            "warmup_epochs": 0.5,
            "weight_decay": 0.04,
        },
        "engine": {"tensorboard": False, "checkpoint_minutes": 30.0},
        "glare": {
            "balance": "sinkhorn",
            "num_prototypes": 128,
            "head_hidden": 256,
            "head_bottleneck": 64,
            "teacher_temperature": [0.04, 0.04],
            "momentum": [0.98, 1.0],
        },
    }


def protocol_settings(options: DemoOptions, out: Path) -> dict[str, object]:
    """Return the options of the comparison."""
    return {
        "protocol": ["linear-seg", "dense-retrieval"],
        "seeds": options.seeds,
        "out": str(out / "comparison"),
        "linear_seg": {"size_px": SIZE_PX, "steps": 300, "lr": 3e-3, "warmup_steps": 12, "loss_stride": 2},
        "dense_retrieval": {"size_px": SIZE_PX, "memory_size": 10_240},
    }


def report_options(out: Path) -> ReportOptions:
    """Return the options of the report."""
    return ReportOptions(
        runs=(str(out / "run"),),
        out=str(out / "report.html"),
        comparison=(str(out / "comparison"),),
        pictures=str(out / "pictures"),
    )


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def claim(out: Path, options: DemoOptions) -> None:
    """Make the folder ours: an earlier demo in it is cleared, anything else is refused."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; give a folder that is new, empty, or an earlier demo's")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise RequestError(f"--out {out} is not empty and no earlier demo; choose a new or empty folder")
        for part in PARTS:
            path = out / part
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_atomically(out / MARKER, lambda stream: stream.write(options.model_dump_json().encode() + b"\n"))
