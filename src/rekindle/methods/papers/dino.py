# SPDX-License-Identifier: Apache-2.0
"""DINO (arXiv:2104.14294): facebookresearch/dino at 7c446df, its README's longer ViT-S run, else the defaults of main_dino.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, byol_colours, training

SCRIPT, README = "DINO, main_dino.py", "DINO, README, boosted run"

STATED = {
    **training(README, epochs=300, batch=1024),
    **at(
        SCRIPT,
        {
            "optim.lr_per_256": 5e-4,
            "optim.lr_is_peak": False,
            "optim.warmup_epochs": 10.0,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.4,
            "optim.clip_norm": 3.0,
            "network.drop_path": 0.1,
            "views.global_size_px": 224,
            "views.local_size_px": 96,
            "views.global_scale": (0.4, 1.0),
            "views.local_scale": (0.05, 0.4),
            "views.num_local": 8,
            "views.hflip_p": 0.5,
            "views.overlap": "independent",
            "dino.num_prototypes": 65536,
            "dino.student_temperature": 0.1,
            "dino.momentum": (0.996, 1.0),
            "dino.freeze_last_layer_epochs": 1,
            "dino.centre_momentum": 0.9,
            "dino.head_hidden": 2048,
            "dino.head_bottleneck": 256,
            "dino.export": "teacher",
        },
    ),
    **at(
        README,
        {
            "dino.teacher_temperature": (0.04, 0.07),
            "dino.teacher_temperature_epochs": 30,
            "dino.norm_last_layer": False,
        },
    ),
    **byol_colours(SCRIPT),
}
