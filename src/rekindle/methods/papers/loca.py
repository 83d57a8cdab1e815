# SPDX-License-Identifier: Apache-2.0
"""LOCA (arXiv:2212.02400): section 3, and google-research/scenic at 4a38d47, projects/loca/configs/loca_imnet1k_base16.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, byol_colours, training

CONFIG, SETUP = "LOCA, loca_imnet1k_base16.py", "LOCA, section 3, implementation"

STATED = {
    **training("LOCA, section 4 (600 in section 5)", epochs=100, batch=1024),
    **at(
        SETUP,
        {
            "optim.lr_per_256": 2.5e-4,
            "optim.weight_decay": 0.1,
            "optim.final_weight_decay": None,
            "loca.num_prototypes": 4096,
        },
    ),
    **byol_colours(CONFIG),
    **at(
        CONFIG,
        {
            "optim.warmup_epochs": 15.0,
            "optim.clip_over": "all",
            "optim.final_lr": 1e-5,
            "network.drop_path": 0.1,
            "views.global_size_px": 224,
            "views.local_size_px": 96,
            "views.global_scale": (0.32, 1.0),
            "views.local_scale": (0.05, 0.32),
            "views.num_local": 9,
            "views.hflip_p": 0.5,
            "views.flip_first": False,
            "loca.mask_ratio": 0.8,
            "loca.mask_shape": "structured",
            "loca.shared_masks": True,
            "loca.query_keep": 0.36,
            "loca.student_temperature": 0.1,
            "loca.teacher_temperature": (0.05, 0.05),
            "loca.momentum": (0.996, 1.0),
            "loca.norm_last_layer": True,
            "loca.freeze_last_layer_epochs": 0,
        },
    ),
    "optim.clip_norm": Stated(1.0, "LOCA, loca_imnet1k_base16.py (over all gradients together; here per tensor)"),
    **at(
        "LOCA, eqs. 1 and 2", {"loca.position_weight": 1.0, "loca.cluster_weight": 1.0, "loca.cluster_level": "patch"}
    ),
    **at("LOCA, table 1", {"loca.position_mode": "query_reference", "loca.position_target": "all"}),
    **at("LOCA, trainer.py", {"loca.memax_weight": 1.0, "loca.sinkhorn": True, "loca.sinkhorn_iterations": 3}),
}
