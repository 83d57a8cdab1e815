#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the small base that `rekindle demo` adapts: DINO from random weights on drawn scenes (`studio`).

    python scripts/train_demo_base.py --work /tmp/demo-base        # about a quarter of an hour on two cores

writes src/rekindle/demo/base.safetensors (half precision), base.json (facts) and base_log.jsonl (training).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

import rekindle
from rekindle.adapters.saved import load_backbone
from rekindle.assemble import pretrain
from rekindle.cli.terminal import TerminalWatcher
from rekindle.config import resolve
from rekindle.data.scenes import write_scenes
from rekindle.networks.checkpoints import write_checkpoint

ARCHITECTURE = "vit:width=128,depth=6,heads=4,patch=8,img=64"
SIZE_PX = 96
LOG_LINES = 200
HERE = Path(__file__).resolve().parents[1] / "src" / "rekindle" / "demo"


def options(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    return {
        "images": str(work / "data" / "images" / "train"),
        "backbone": ARCHITECTURE,
        "method": "dino",
        "init": "random",
        "train": "all",
        "out": str(work / "run"),
        "steps": arguments.steps,
        "batch_size": 32,
        "seed": arguments.seed,
        "precision": "bf16",
        "views": {
            "global_size_px": 64,
            "local_size_px": 32,
            "num_local": 4,
            "global_scale": [0.4, 1.0],
            "local_scale": [0.1, 0.4],
        },
        "network": {"drop_path": 0.0},
        "optim": {
            "lr_per_256": 2e-3,
            "warmup_epochs": 1.0,
            "final_lr": 1e-5,
            "weight_decay": 0.04,
            "final_weight_decay": 0.2,
        },
        "engine": {"micro_batch_size": 32, "tensorboard": False, "checkpoint_minutes": 60.0},
        "dino": {
            "num_prototypes": 512,
            "head_hidden": 512,
            "head_bottleneck": 128,
            "teacher_temperature": [0.03, 0.03],
            "norm_last_layer": True,
            "momentum": [0.99, 1.0],
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the scenes and the run; new or empty"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where the three files go")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = arguments.work
    write_scenes(work / "data", "studio", {"train": arguments.scenes}, size_px=SIZE_PX, seed=arguments.seed)
    asked = options(arguments, work)
    start = time.monotonic()
    pretrain(resolve({}, asked), watcher=TerminalWatcher())
    seconds = time.monotonic() - start
    backbone, _ = load_backbone(str(work / "run"))
    backbone.identity = replace(backbone.identity, name="rekindle demo base", licence="Apache-2.0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(backbone.half(), arguments.out / "base.safetensors")
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    every = max(1, -(-len(lines) // LOG_LINES))
    kept = lines[:-1:every] + lines[-1:]
    (arguments.out / "base_log.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    steps = [json.loads(line) for line in lines]
    asked["images"], asked["out"] = "scenes of the domain studio (rekindle.data.scenes)", "a run folder"
    description = {
        "what": "vision transformer, trained by DINO from random weights on drawn scenes; for the demo alone",
        "licence": "Apache-2.0",
        "command": f"python scripts/train_demo_base.py --work WORK --scenes {arguments.scenes} "
        f"--steps {arguments.steps} --seed {arguments.seed}",
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "stored_as": "float16",
        "data": {"domain": "studio", "scenes": arguments.scenes, "size_px": SIZE_PX, "seed": arguments.seed},
        "options": asked,
        "loss_first_step": steps[0]["loss"],
        "loss_last_step": steps[-1]["loss"],
        "training_seconds": round(seconds),
        "versions": {
            "rekindle": rekindle.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "log": f"base_log.jsonl: every {every}. line of the run's metrics.jsonl, and the last",
    }
    (arguments.out / "base.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
