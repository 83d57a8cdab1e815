# SPDX-License-Identifier: Apache-2.0
"""MMC (Wu et al., masked momentum contrast): its section on pre-training and its supplement; no code was found."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, lent, training

SETUP, SUPPLEMENT = "MMC, experiments, pretraining", "MMC, supplement, augmentations"

STATED = {
    **training(SETUP, epochs=500, batch=384),
    **at(
        "MMC, experiments, pretraining (7.5e-4 for 8 x 48 images)",
        {
            "optim.lr_per_256": 5e-4,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": None,
        },
    ),
    **at(SETUP, {"views.global_size_px": 224, "mmc.momentum": (0.996, 1.0), "mmc.temperature": 0.2}),
    **at(
        SUPPLEMENT,
        {"views.brightness": 0.4, "views.contrast": 0.4, "views.saturation": 0.4, "views.solarize_p": (0.0, 0.2, 0.0)},
    ),
    **at("MMC, caption of figure 8", {"mmc.replace_p": 0.35}),
    **at(
        "MMC, eqs. 1 to 4",
        {"mmc.rec_weight": 1.0, "mmc.cls_weight": 1.0, "mmc.pat_weight": 1.0, "mmc.masked_only": False},
    ),
    "mmc.multicrop_role": Stated("teacher", "MMC, section on the method", "the student, as all its ancestors"),
    "mmc.rec_norm": Stated("all", "MMC, eq. 1", "the corrupted pixels alone, as its ancestors' code divides"),
    **lent(
        "SiT, main.py",
        {"optim.warmup_epochs": 10.0, "optim.clip_norm": 3.0, "network.drop_path": 0.1, "mmc.head_out": 256},
    ),
    **lent("MMC's wording: jitter (0.4, 0.4, 0.4) without a hue", {"views.hue": 0.0}),
}
