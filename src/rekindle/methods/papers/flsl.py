# SPDX-License-Identifier: Apache-2.0
"""FLSL (arXiv:2306.06203): ISL-CV/FLSL at acb5d6f, the command of its README, else the defaults of main_flsl.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, training

SCRIPT, README = "FLSL, main_flsl.py", "FLSL, README"
MIXTURE = "one chain for each view, as GLARE's views have it"

STATED = {
    **training(README, epochs=300, batch=512),
    **at(
        SCRIPT,
        {
            "optim.lr_per_256": 5e-4,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.4,
            "optim.clip_norm": 3.0,
            "network.drop_path": 0.1,
            "views.nested": True,
            "views.hflip_p": 0.0,
            "views.jitter_p": 0.8,
            "views.grey_p": 0.2,
            "flsl.student_temperature": 0.1,
            "flsl.momentum": (0.996, 1.0),
            "flsl.freeze_last_layer_epochs": 1,
            "flsl.head_hidden": 2048,
            "flsl.head_bottleneck": 256,
            "flsl.shift_weight": 0.03,
            "flsl.cluster_weight": 1.0,
            "flsl.volume_weight": 5.0,
            "flsl.shift_temperature": 0.1,
            "flsl.cluster_temperature": 0.2,
            "flsl.window": 3,
            "flsl.local_window": 2,
            "flsl.random_windows": False,
            "flsl.export": "teacher",
            "network.positions": "sincos",
            "optim.warmup_limit": 0.1,
        },
    ),
    **at(
        README,
        {
            "views.global_scale": (0.8, 1.0),
            "views.second_scale": (0.5, 1.0),
            "views.local_scale": (0.05, 0.4),
            "views.num_local": 2,
            "flsl.num_prototypes": 4096,
            "flsl.norm_last_layer": True,
            "flsl.teacher_temperature": (0.04, 0.07),
            "flsl.teacher_temperature_epochs": 30,
        },
    ),
    "optim.warmup_epochs": Stated(30.0, "FLSL, main_flsl.py (a tenth of the epochs, which are 300)"),
    "views.blur_p": Stated("with 0.5: blur of p 0.5; else blur of p 0.1, solarised of p 0.2", SCRIPT, MIXTURE),
    "views.solarize_p": Stated("with the blur", SCRIPT, MIXTURE),
}
