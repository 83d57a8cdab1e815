# SPDX-License-Identifier: Apache-2.0
"""MoCo v3 (arXiv:2104.02057): facebookresearch/moco-v3 at c349e6e, the ViT-S command of its README, else main_moco.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, byol_colours, training

SCRIPT, README = "MoCo v3, main_moco.py", "MoCo v3, README, ViT-S"

STATED = {
    **training(README, epochs=300, batch=1024),
    **byol_colours(SCRIPT),
    **at(
        README,
        {
            "optim.lr_per_256": 1.5e-4,
            "optim.warmup_epochs": 40.0,
            "optim.weight_decay": 0.1,
            "optim.final_weight_decay": None,
            "mocov3.temperature": 0.2,
            "mocov3.momentum": (0.99, 1.0),
            "mocov3.freeze_patch_projection": True,
        },
    ),
    **at(
        SCRIPT,
        {
            "optim.final_lr": 0.0,
            "optim.clip_norm": 0.0,
            "network.drop_path": 0.0,
            "network.positions": "sincos",
            "optim.decay_vectors": True,
            "views.num_local": 0,
            "views.global_scale": (0.08, 1.0),
            "views.hflip_p": 0.5,
            "mocov3.projector_hidden": 4096,
            "mocov3.projector_out": 256,
            "mocov3.export": "student",
        },
    ),
}
