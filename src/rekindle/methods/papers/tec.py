# SPDX-License-Identifier: Apache-2.0
"""TEC (arXiv:2210.11016): tables 11 to 14, appendices A to C, and its released code where the two differ."""

from __future__ import annotations

from rekindle.methods.papers.mae import CROPS
from rekindle.methods.shared.stated import at, training

SETTINGS, CODE = "TEC, table 13", "TEC, released code"

STATED = {
    **CROPS,
    **training("TEC, appendix B (300 and 800 epochs)", epochs=300, batch=4096),
    **at(
        SETTINGS,
        {
            "optim.lr_per_256": 1.5e-4,
            "optim.warmup_epochs": 40.0,
            "optim.weight_decay": 0.05,
            "optim.final_weight_decay": None,
            "optim.beta1": 0.9,
            "optim.beta2": 0.95,
        },
    ),
    **at(CODE, {"optim.final_lr": 0.0, "optim.clip_norm": 0.0, "tec.rank_on": "logits", "tec.attention_scale": "full"}),
    **at("TEC, appendix B", {"tec.start": "random", "train": "all", "tec.mask_ratio": 0.75}),
    **at("TEC, table 11", {"tec.target_norm": "patch", "tec.input_adapter": True, "tec.encoder_adapter": True}),
    **at("TEC, table 12", {"tec.attention": "select"}),
    **at("TEC, table 14 (which the base model's family chooses)", {"tec.preset": "auto"}),
    **at("TEC, appendix C", {"tec.last_layers": 2}),
    **at("TEC, appendix A, encoder adapter", {"tec.blocks_per_group": 3}),
    **at("TEC, appendix A, decoder", {"tec.decoder_depth": 2}),
}
