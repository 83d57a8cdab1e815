#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the small base that `rekindle demo` adapts, from random weights on drawn scenes of the domain `studio`.

    python scripts/train_demo_base.py        # about five minutes on two cores

The base learns from labels: which classes the pixels of each patch have (patch tokens, soft cross-entropy) and which
classes a view holds (class token, binary cross-entropy). Self-supervision from random weights needs far more scenes
than a small machine sees in minutes; what was tried is written in base.json. Nothing of the domain `field` is seen.

Writes src/rekindle/demo/base.safetensors (half precision), base.json (facts) and base_log.jsonl (training).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

import rekindle
from rekindle.core.rng import generator, seeded_default
from rekindle.data.scenes import CLASSES, draw_scene
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions

ARCHITECTURE = "vit:width=128,depth=6,heads=4,patch=8,img=64"
DOMAIN, SIZE_PX, VIEW_PX, BATCH = "studio", 96, 64, 32
PEAK_LR, FINAL_LR, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 1e-5, 30, 0.05
LOG_LINES = 200
TRIED = (
    "From random weights on 1200-2000 studio scenes (96 px, 150-300 steps of 32, two contended cores): DINO (peak lr "
    "2.5e-4 and 6e-4, K 512 and 1024) and GLARE (centre and Sinkhorn targets, mild and strong colour jitter, blur and "
    "mask) drifted to a uniform teacher or stayed at the level of random weights in a nearest-neighbour test."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "src/rekindle/demo")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    images, labels = scenes("train", arguments.scenes, arguments.seed)
    options = NetworkOptions(drop_path=0.0)
    backbone, _ = create_backbone(ARCHITECTURE, options, init="random", seed=arguments.seed)
    lines = train(backbone, images, labels, arguments.steps, arguments.seed)
    seconds = time.monotonic() - start
    backbone.identity = replace(backbone.identity, name="rekindle demo base", licence="Apache-2.0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = arguments.out / "base.safetensors"
    write_checkpoint(backbone.half(), weights)
    weights.chmod(0o644)
    every = max(1, -(-len(lines) // LOG_LINES))
    kept = lines[:-1:every] + lines[-1:]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (arguments.out / "base_log.jsonl").write_text(text, encoding="utf-8")
    description = {
        "what": "vision transformer trained from random weights with labels of drawn scenes; for the demo alone",
        "licence": "Apache-2.0",
        "command": f"python scripts/train_demo_base.py --scenes {arguments.scenes} --steps {arguments.steps} "
        f"--seed {arguments.seed}",
        "architecture": ARCHITECTURE,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "stored_as": "float16",
        "data": {"domain": DOMAIN, "scenes": arguments.scenes, "size_px": SIZE_PX, "seed": arguments.seed},
        "settings": {
            "view_px": VIEW_PX,
            "batch_size": BATCH,
            "peak_lr": PEAK_LR,
            "final_lr": FINAL_LR,
            "warmup_steps": WARMUP_STEPS,
            "weight_decay": WEIGHT_DECAY,
            "augmentation": "random crop and mirror",
        },
        "loss_first_step": lines[0]["loss"],
        "loss_last_step": lines[-1]["loss"],
        "training_seconds": round(seconds),
        "tried_before": TRIED,
        "versions": {
            "rekindle": rekindle.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "log": f"base_log.jsonl: one line in {every}, and the last",
    }
    (arguments.out / "base.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}", file=sys.stderr)
    return 0


def scenes(split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [n, 3, S, S] as bytes, and class ids [n, S, S]."""
    drawn = [draw_scene(DOMAIN, split=split, index=i, size_px=SIZE_PX, seed=seed) for i in range(count)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(np.stack([mask for _, mask in drawn])).long()


def train(backbone: Backbone, images: Tensor, labels: Tensor, steps: int, seed: int) -> list[dict[str, float]]:
    with seeded_default(seed, "demo-base-heads"):
        heads = nn.ModuleDict({name: nn.Linear(backbone.width, len(CLASSES)) for name in ("patch", "view")})
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    source = generator(seed, "demo-base")
    lines = []
    for step in range(steps):
        rate = PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS)
        rate = FINAL_LR + (rate - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        view, ids = crop(images, labels, source)
        onehot = nn.functional.one_hot(ids, len(CLASSES)).float()
        patch = backbone.patch_size
        share = onehot.unfold(1, patch, patch).unfold(2, patch, patch).mean(dim=(-2, -1))
        with torch.autocast("cpu", torch.bfloat16):
            tokens = backbone((view.float() / 255 - mean) / std)
            logits, presence = heads["patch"](tokens.patches), heads["view"](tokens.cls)
        dense = -(logits.float().log_softmax(-1) * share).sum(-1).mean()
        present = (onehot.sum(dim=(1, 2)) > 0).float()
        whole = nn.functional.binary_cross_entropy_with_logits(presence.float(), present)
        loss = dense + whole
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lines.append({"step": step + 1, "loss": loss.item(), "patch": dense.item(), "view": whole.item(), "lr": rate})
        if step % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return lines


def crop(images: Tensor, labels: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random window for the whole batch, mirrored or not."""
    chosen = torch.randint(len(images), (BATCH,), generator=source)
    top, left = torch.randint(SIZE_PX - VIEW_PX + 1, (2,), generator=source).tolist()
    rows, columns = slice(top, top + VIEW_PX), slice(left, left + VIEW_PX)
    view, ids = images[chosen][..., rows, columns], labels[chosen][..., rows, columns]
    if torch.rand((), generator=source) < 0.5:
        view, ids = view.flip(-1), ids.flip(-1)
    return view, ids


if __name__ == "__main__":
    raise SystemExit(main())
