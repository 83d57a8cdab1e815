# SPDX-License-Identifier: Apache-2.0
"""MAE (arXiv:2111.06377): appendix A.1, table 8, and facebookresearch/mae at efb2a80."""

from __future__ import annotations

from rekindle.methods.shared.stated import at, training

TABLE, SCRIPT = "MAE, table 8", "MAE, PRETRAIN.md and main_pretrain.py"

CROPS = at(
    SCRIPT,
    {
        "views.num_local": 0,
        "views.global_size_px": 224,
        "views.global_scale": (0.2, 1.0),
        "views.hflip_p": 0.5,
        "views.jitter_p": 0.0,
        "views.grey_p": 0.0,
        "views.blur_p": (0.0, 0.0, 0.0),
        "views.solarize_p": (0.0, 0.0, 0.0),
        "network.drop_path": 0.0,
    },
)

STATED = {
    **training(SCRIPT, epochs=800, batch=4096),
    **CROPS,
    **at(
        TABLE,
        {
            "optim.lr_per_256": 1.5e-4,
            "optim.lr_is_peak": False,
            "optim.warmup_epochs": 40.0,
            "optim.weight_decay": 0.05,
            "optim.final_weight_decay": None,
            "optim.beta1": 0.9,
            "optim.beta2": 0.95,
        },
    ),
    **at(
        SCRIPT,
        {"optim.final_lr": 0.0, "optim.clip_norm": 0.0, "mae.normalise_pixels": True, "network.positions": "sincos"},
    ),
    **at("MAE, table 1", {"mae.decoder_depth": 8, "mae.decoder_width": 512}),
    **at("MAE, models_mae.py", {"mae.decoder_heads": 16}),
    **at("MAE, section 3", {"mae.mask_ratio": 0.75}),
}
