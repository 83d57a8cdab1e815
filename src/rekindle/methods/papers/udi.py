# SPDX-License-Identifier: Apache-2.0
"""UDI (Su and Ji, 2024): the ViT-S recipe of its script, which was read and not kept."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, lent, training

SCRIPT = "UDI's script, ViT-S recipe"
MIXTURE = "one chain for each view, as GLARE's views have it"

STATED = {
    **training(SCRIPT, epochs=300, batch=1024),
    **at(
        SCRIPT,
        {
            "optim.lr_per_256": 5e-4,
            "optim.warmup_epochs": 10.0,
            "optim.final_lr": 1e-5,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.1,
            "optim.clip_norm": 3.0,
            "network.drop_path": 0.1,
            "views.global_scale": (0.25, 1.0),
            "views.local_scale": (0.05, 0.25),
            "views.num_local": 6,
            "views.overlap": "shift",
            "views.jitter_p": 0.8,
            "views.grey_p": 0.2,
            "udi.num_prototypes": 65536,
            "udi.norm_last_layer": False,
            "udi.student_temperature": 0.1,
            "udi.teacher_temperature": (0.04, 0.07),
            "udi.teacher_temperature_epochs": 30,
            "udi.momentum": (0.996, 1.0),
            "udi.freeze_last_layer_epochs": 1,
            "udi.centre_momentum": 0.9,
            "udi.mixture": 0.5,
            "udi.window": 3,
            "udi.local_window": 2,
            "udi.export": "teacher",
        },
    ),
    "views.blur_p": Stated("with 0.5: blur of p 0.5 or 1; else blur of p 0.1, solarised of p 0.2", SCRIPT, MIXTURE),
    "views.solarize_p": Stated("with the blur", SCRIPT, MIXTURE),
    **lent("DINO, main_dino.py", {"udi.head_hidden": 2048, "udi.head_bottleneck": 256}),
}
