# SPDX-License-Identifier: Apache-2.0
"""Thirty steps of every method on real images lower its loss, through the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from rekindle.methods import METHODS
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import pretrain

SMALL_HEAD: dict[str, Any] = {"num_prototypes": 256, "head_hidden": 256, "head_bottleneck": 64}
SMALL: dict[str, dict[str, Any]] = {
    "mae": {"decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4},
    "mocov3": {"projector_hidden": 256, "projector_out": 64},
    "mcssl": {**SMALL_HEAD, "pixel_hidden": 256},
    "mmc": {"head_hidden": 256, "head_out": 64, "pixel_hidden": 256},
    "msn": {"num_prototypes": 256, "head_hidden": 256, "head_out": 64},
    "paka": {},
    "sit": {"head_hidden": 256, "head_out": 64, "pixel_hidden": 256},
    "tec": {"decoder_width": 64, "decoder_heads": 4, "blocks_per_group": 2},
    "flsl": SMALL_HEAD,
}
ARCH = "vit:width=96,depth=4,heads=3,patch=16,img=224"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_thirty_steps_lower_the_loss(method: str, real_data: Path, tmp_path: Path) -> None:
    """From random weights. What a loss over prototypes measures moves with its teacher and centre, so these stand still."""
    options = {**SMALL.get(method, SMALL_HEAD)}
    if method == "loca":
        options["mask_ratio"] = 0.5
    if method == "paka":  # the structure of a random teacher's tokens is none to follow
        options["momentum"] = (0.98, 1.0)
    if method in ("dino", "glare", "ibot", "udi", "flsl", "mcssl"):
        options |= {"freeze_last_layer_epochs": 0, "teacher_temperature": (0.04, 0.04)}
        options |= {"momentum": (1.0, 1.0)} | ({} if method == "flsl" else {"centre_momentum": 1.0})
    asked = {
        "images": str(real_data / "camvid" / "images" / "train"),
        "backbone": ARCH + (",registers=1" if method == "udi" else ""),
        "init": "random",
        "train": "all",
        "method": method,
        "out": str(tmp_path / "run"),
        "steps": 30,
        "batch_size": 16,
        "accelerator": "cpu",
        "views": {"global_size_px": 112, "local_size_px": 64}
        | ({} if method in ("mae", "mcssl", "mocov3") else {"num_local": 2}),
        "optim": {"lr_per_256": 1e-3, "lr_is_peak": True, "warmup_epochs": 0.2, "weight_decay": 0.04},
        "engine": {"tensorboard": False, "log_steps": 1},
        "data": {"num_workers": 1},
        method: options,
    }
    pretrain(resolve({}, asked))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 30
    assert mean(losses[-5:]) < mean(losses[:5]), losses
