# SPDX-License-Identifier: Apache-2.0
"""SiT (arXiv:2104.03602): Sara-Ahmed/SiT at 7f22e9c, the command of its README, else the defaults of main.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, byol_colours, training

AS_MMC = "a continual run has it as MMC's table 4 reads SiT; from scratch it is the code's"
SCRIPT, README, VIEWS = "SiT, main.py", "SiT, README", "SiT, datasets_utils.py"

STATED = {
    **training(README, epochs=801, batch=256),
    **byol_colours(VIEWS),
    **at(VIEWS, {"views.num_local": 0, "views.global_scale": (0.2, 1.0), "views.hflip_p": 0.5}),
    **at(
        SCRIPT,
        {
            "optim.lr_per_256": 5e-4,
            "optim.warmup_epochs": 10.0,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.1,
            "optim.clip_norm": 3.0,
            "network.drop_path": 0.1,
            "sit.replace_p": 0.5,
            "sit.replace_area": (0.3, 0.3),
            "sit.max_block": 0.3,
            "sit.temperature": 0.2,
            "sit.head_out": 256,
            "sit.momentum": (0.996, 1.0),
            "sit.rec_weight": 1.0,
        },
    ),
    **{
        name: Stated(value, place, AS_MMC)
        for place, values in (
            (SCRIPT, {"sit.fill": "zeros", "sit.noise_area": (0.5, 0.5), "sit.scale_2tau": True, "sit.align_px": 1}),
            ("SiT, main.py (both directions are added up, and the term is their mean)", {"sit.cls_weight": 2.0}),
            ("SiT, vision_transformer.py", {"sit.pixel_hidden": None, "sit.pixel_layers": 4}),
        )
        for name, value in values.items()
    },
}
