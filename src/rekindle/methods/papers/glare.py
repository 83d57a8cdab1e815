# SPDX-License-Identifier: Apache-2.0
"""GLARE (arXiv:2509.17816): its training, which all continual runs share, and its method."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, byol_colours, lent

SETUP, COLOURS = "GLARE, section 5", "GLARE, appendix B.1"
SHARED_HEAD = dict.fromkeys(["udi.num_prototypes", "flsl.num_prototypes", "dino.num_prototypes"], 8192)
"""GLARE's baselines have the head of GLARE."""

CONTINUAL = {
    **at(
        SETUP,
        {
            "train": "adapters",
            "epochs": 100.0,
            "batch_size": 512,
            "optim.lr_per_256": 1.5e-4,
            "optim.lr_is_peak": False,
            "optim.warmup_epochs": 1.0,
            "optim.weight_decay": 0.1,
            "optim.final_weight_decay": None,
            "views.global_size_px": 224,
            "views.local_size_px": 96,
            "views.num_local": 10,
            "glare.num_prototypes": 8192,
            **SHARED_HEAD,
        },
    ),
    **at(COLOURS, {"views.global_scale": (0.25, 1.0), "views.local_scale": (0.05, 0.25)}),
    **{name: entry for name, entry in byol_colours(COLOURS).items() if name != "views.blur_sigma"},
    **at(
        "GLARE, section 3.2",
        {"adapter.kind": "uniadapter", "adapter.position": "after_attn", "adapter.layernorm": None},
    ),
    **lent("UniAdapter's code (arXiv:2302.06605)", {"adapter.scale": 0.1, "adapter.learn_scale": False}),
    **lent(
        "the kind's usual 512: only it fits the 12 M and 34 M parameters of GLARE's table 3", {"adapter.rank": None}
    ),
    **lent(
        "UDI's script",
        {
            "optim.final_lr": 1e-5,
            "optim.clip_norm": 3.0,
            "optim.beta1": 0.9,
            "optim.beta2": 0.999,
            "network.drop_path": 0.1,
        },
    ),
    **lent(
        "DINO, main_dino.py", {"views.hflip_p": 0.5, "views.blur_sigma": (0.1, 2.0), "views.overlap": "independent"}
    ),
}
"""GLARE's continual training: in force with `recipe=paper` for every method, but for what belongs to that method."""

ONE_PASS = "the student reads the distorted view in all terms: one pass, which fits the paper's cost (table 8)"
AVERAGES = "averages: the printed sums would outweigh L_glob a hundredfold at unit weights"
STATED = {
    **{name: entry for name, entry in CONTINUAL.items() if name not in {"train", *SHARED_HEAD}},
    **at("GLARE, eq. 10", {"glare.global_weight": 1.0, "glare.regional_weight": 1.0, "glare.local_weight": 1.0}),
    **at("GLARE, table 7", {"glare.distortion": "blur", "glare.distortion_shape": "random"}),
    **at("GLARE, section 7.2 (none half of the time, else 10 to 50 %)", {"glare.distortion_ratio": "ibot"}),
    **at("GLARE, section 4.2 (one region per head)", {"glare.region_start": "attention", "glare.num_regions": None}),
    "glare.student_input": Stated("two_pass", "GLARE, eqs. 4 and 9", ONE_PASS),
    "glare.reduction": Stated("sum", "GLARE, eqs. 7 to 9", AVERAGES),
    "glare.match_reduction": Stated("sum", "GLARE, eq. 9", "coarse patches would weigh more than fine ones"),
    "glare.region_target": Stated(
        "eq6", "GLARE, eq. 6", "eq. 6 and its text disagree; this is the smallest correction"
    ),
    "glare.symmetric": Stated(False, "GLARE, eqs. 4 to 9 (one direction is printed)", "both directions, as DINO"),
    "glare.attention_residual": Stated(False, "GLARE, eq. 5"),
    **lent(
        "UDI's script",
        {
            "glare.norm_last_layer": False,
            "glare.teacher_temperature": (0.04, 0.07),
            "glare.teacher_temperature_epochs": 30,
            "glare.momentum": (0.996, 1.0),
            "glare.freeze_last_layer_epochs": 1,
            "glare.centre_momentum": 0.9,
            "glare.student_temperature": 0.1,
            "glare.head_hidden": 2048,
            "glare.head_bottleneck": 256,
            "glare.balance": "centre",
            "glare.num_centres": 3,
            "glare.export": "teacher",
            "glare.local_crops_in_loc2": False,
        },
    ),
}
