# SPDX-License-Identifier: Apache-2.0
"""FD (arXiv:2205.14141): SwinTransformer/Feature-Distillation at 2115145, the configuration for DINO's ViT-B, else config.py."""

from __future__ import annotations

from rekindle.methods.papers.mae import CROPS
from rekindle.methods.shared.stated import Stated, at, training

CONFIG, CODE = "FD, fd_pretrain__dino_vit_base__img224__300ep.yaml", "FD, feature_distillation.py"

STATED = {
    **{name: Stated(entry.value, "FD, data_fd.py") for name, entry in CROPS.items() if name != "network.drop_path"},
    **training(CONFIG, epochs=300, batch=2048),
    **at("FD, data_fd.py (the views of this project are two)", {"views.global_scale": (0.08, 1.0)}),
    **at(
        CONFIG,
        {
            "optim.warmup_epochs": 10.0,
            "optim.weight_decay": 0.05,
            "optim.final_weight_decay": None,
            "optim.clip_norm": 3.0,
            "fd.after_norm": True,
            "fd.drop_path": 0.3,
        },
    ),
    **at(
        "FD, its configuration (3e-4 and 5e-6 for 512 images, at 2048)",
        {"optim.lr_per_256": 1.5e-4, "optim.final_lr": 2e-5},
    ),
    **at(CODE, {"fd.beta": 2.0, "network.drop_path": 0.0, "train": "all"}),
    **at("FD, config.py", {"optim.beta1": 0.9, "optim.beta2": 0.999, "optim.eps": 1e-8}),
}
