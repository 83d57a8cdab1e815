# SPDX-License-Identifier: Apache-2.0
"""MSN (arXiv:2204.07141): facebookresearch/msn at 4388dc1, configs/pretrain/msn_vits16.yaml and src/data_manager.py."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, training

CONFIG, VIEWS = "MSN, msn_vits16.yaml", "MSN, data_manager.py"

STATED = {
    **training(CONFIG, epochs=800, batch=1024),
    **at(
        CONFIG,
        {
            "optim.lr_per_256": 2.5e-4,
            "optim.warmup_epochs": 15.0,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.4,
            "optim.clip_norm": 3.0,
            "optim.start_lr": 5e-5,
            "network.pos_interp": "size",
            "network.drop_path": 0.0,
            "views.num_local": 10,
            "views.global_size_px": 224,
            "views.local_size_px": 96,
            "views.brightness": 0.4,
            "views.contrast": 0.4,
            "views.saturation": 0.4,
            "views.hue": 0.1,
            "msn.num_prototypes": 1024,
            "msn.temperature": 0.1,
            "msn.sharpening": 0.25,
            "msn.memax_weight": 1.0,
            "msn.sinkhorn": True,
            "msn.head_hidden": 2048,
            "msn.head_out": 256,
            "msn.head_norm": "bn",
        },
    ),
    **at("MSN, msn_vits16.yaml (0.15 for a ViT-S, which is what None gives it)", {"msn.mask_ratio": None}),
    **at(
        VIEWS,
        {
            "views.global_scale": (0.3, 1.0),
            "views.local_scale": (0.05, 0.3),
            "views.jitter_p": 0.8,
            "views.grey_p": 0.2,
            "views.blur_p": (0.5, 0.5, 0.5),
            "views.solarize_p": (0.0, 0.0, 0.0),
            "views.hflip_p": 0.5,
        },
    ),
    **at("MSN, src/helper.py", {"optim.stretch": 1.25}),
    **at("MSN, msn_train.py", {"optim.clip_over": "all", "msn.sinkhorn_iterations": 3, "msn.export": "teacher"}),
}
