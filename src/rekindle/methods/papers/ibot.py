# SPDX-License-Identifier: Apache-2.0
"""iBOT (arXiv:2111.07832): bytedance/ibot at da316d8, the ViT-S/16 command of its README, else the defaults of main_ibot.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, byol_colours, training

SCRIPT, README = "iBOT, main_ibot.py", "iBOT, README, ViT-S/16"

STATED = {
    **training(README, epochs=800, batch=1024),
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
            "views.hflip_p": 0.5,
            "ibot.student_temperature": 0.1,
            "ibot.momentum": (0.996, 1.0),
            "ibot.freeze_last_layer_epochs": 1,
            "ibot.centre_momentum": 0.9,
            "ibot.head_hidden": 2048,
            "ibot.head_bottleneck": 256,
            "ibot.global_weight": 1.0,
            "ibot.patch_weight": 1.0,
            "ibot.mask_shape": "block",
            "ibot.export": "teacher",
        },
    ),
    **at(
        README,
        {
            "views.num_local": 10,
            "views.global_scale": (0.25, 1.0),
            "views.local_scale": (0.05, 0.25),
            "ibot.num_prototypes": 8192,
            "ibot.norm_last_layer": False,
            "ibot.teacher_temperature": (0.04, 0.07),
            "ibot.teacher_temperature_epochs": 30,
            "ibot.mask_ratio": "ibot",
        },
    ),
    **byol_colours(SCRIPT),
}
