# SPDX-License-Identifier: Apache-2.0
"""MC-SSL0.0 (arXiv:2111.15340): no code was found, and what it trains with is taken from its group's and from DINO's code."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, lent

STATED = {
    **at("MC-SSL, its two losses, unweighted", {"mcssl.rec_weight": 1.0, "mcssl.concept_weight": 1.0}),
    **lent("iBOT, README, ViT-S/16", {"mcssl.num_prototypes": 8192}),
    **lent(
        "DINO, main_dino.py",
        {
            "optim.lr_per_256": 5e-4,
            "optim.warmup_epochs": 10.0,
            "optim.final_lr": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.4,
            "optim.clip_norm": 3.0,
            "mcssl.student_temperature": 0.1,
            "mcssl.teacher_temperature": (0.04, 0.07),
            "mcssl.momentum": (0.996, 1.0),
            "mcssl.centre_momentum": 0.9,
        },
    ),
    **lent("SiT, datasets_utils.py", {"views.num_local": 0, "views.global_scale": (0.2, 1.0), "mcssl.replace_p": 0.5}),
}
