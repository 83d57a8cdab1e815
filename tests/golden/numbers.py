# SPDX-License-Identifier: Apache-2.0
"""What the authors' code gives for the cases of `cases`: losses, gradients' norms, centres after the step, schedules, decay.

Each entry says which code at which commit, and what of it ran. Schedules are those of training from scratch with 1,024 images a
step, 300 epochs of 10 steps, at steps 0, 750, 1500, 2250 and 2999; `decayed` counts tensors and numbers. A number changes here
only with an entry under **Numbers** of the changelog that carries the new digest (`test_golden`).
"""

from __future__ import annotations

from typing import Any

GOLDEN: dict[str, dict[str, Any]] = {
    "dino": {
        "code": "facebookresearch/dino 7c446df5b9f4",
        "ran": "its network, head, DINOLoss, cosine_scheduler and get_params_groups, with the weights copied",
        "losses": {"total": 6.5474524, "glob": 6.5474524},
        "gradients": {"network": 15.554671, "heads": 14.503503},
        "centres": {"cls": 0.30087355},
        "rate": [0.0, 0.001762281, 0.0010546118, 0.00031314439, 1.0005865e-06],
        "decay": [0.04, 0.092720779, 0.22, 0.34727922, 0.3999999],
        "momentum": [0.996, 0.99658579, 0.998, 0.99941421, 1.0],
        "decayed": [16, 34688],
    },
    "ibot": {
        "code": "bytedance/ibot da316d82636a",
        "ran": (
            "its network with hidden patches, iBOTHead, iBOTLoss, cosine_scheduler and get_params_groups, with the "
            "weights copied"
        ),
        "losses": {"total": 7.8912716, "cls": 6.1152115, "mim": 1.7760601},
        "gradients": {"network": 22.20507, "heads": 14.361857},
        "centres": {"cls": 0.30087355, "patch": 0.32204983},
        "rate": [0.0, 0.001762281, 0.0010546118, 0.00031314439, 1.0005865e-06],
        "decay": [0.04, 0.092720779, 0.22, 0.34727922, 0.3999999],
        "momentum": [0.996, 0.99658579, 0.998, 0.99941421, 1.0],
        "decayed": [17, 34720],
    },
    "mae": {
        "code": "facebookresearch/mae efb2a8062c20",
        "ran": (
            "its whole model with the weights copied, its schedule, timm's groups; positions of the decoder are ours "
            "(another order of channels)"
        ),
        "losses": {"total": 2.0046592, "mae": 2.0046592},
        "gradients": {"network": 0.26587844, "heads": 2.1132155},
        "centres": {},
        "rate": [0.0, 0.00057356995, 0.0003717947, 0.00011498434, 2.1900007e-10],
        "decay": [0.05, 0.05, 0.05, 0.05, 0.05],
        "momentum": [],
        "decayed": [21, 62528],
    },
    "mocov3": {
        "code": "facebookresearch/moco-v3 c349e6e24f40",
        "ran": "MoCo_ViT around timm's network with the weights copied, both schedules, the optimizer's parameters",
        "losses": {"total": 1.1854364, "ctr1": 1.9824481, "ctr2": 0.98114274},
        "gradients": {"network": 46.118996, "heads": 19.791442},
        "centres": {},
        "rate": [0.0, 0.00057356995, 0.0003717947, 0.00011498434, 2.1900007e-10],
        "decay": [0.1, 0.1, 0.1, 0.1, 0.1],
        "momentum": [0.99, 0.99146447, 0.995, 0.99853553, 1.0],
        "decayed": [38, 29280],
    },
    "msn": {
        "code": "facebookresearch/msn 4388dc1eadbe",
        "ran": "its network and head with the weights copied, init_msn_loss, both schedules, init_opt",
        "losses": {"total": 6.4966502, "msn": 5.8912406, "memax": 0.60540962},
        "gradients": {"network": 27.151669, "heads": 8.7761503},
        "centres": {},
        "rate": [0.00020533333, 0.00093286158, 0.00069124759, 0.00037079889, 0.00010422001],
        "decay": [0.040000063, 0.074465628, 0.16452038, 0.27576646, 0.36562306],
        "momentum": [0.996, 0.9968, 0.9976, 0.9984, 0.99919893],
        "decayed": [14, 34144],
    },
    "flsl": {
        "code": "ISL-CV/FLSL acb5d6f0dcde",
        "ran": (
            "its network (class token kept), head, mean shift, FLSLLoss, volume, schedules and groups, with the "
            "weights copied"
        ),
        "losses": {"total": 14.375008, "ms": 0.51706314, "km": 7.5857663, "vmr": 1.3547459},
        "gradients": {"network": 45.177202, "heads": 47.162277},
        "centres": {},
        "rate": [0.0, 0.0018660924, 0.0011740614, 0.00035803378, 1.0006766e-06],
        "decay": [0.04, 0.092720779, 0.22, 0.34727922, 0.3999999],
        "momentum": [0.996, 0.99658579, 0.998, 0.99941421, 1.0],
        "decayed": [14, 33824],
    },
    "udi": {
        "code": "UDI's main script as published",
        "ran": "its UDILoss and Centering on what our networks give; schedules and groups are DINO's, which it names",
        "losses": {"total": 5.9814949, "cls": 5.4541087, "cls+": 6.6921363, "patch": 5.7982392},
        "gradients": {"network": 8.2580427, "heads": 6.761673},
        "centres": {"cls": 0.28835139, "cls+": 0.30216461, "patch": 0.2850135},
        "rate": [0.0, 0.0017633512, 0.0010588682, 0.00032073904, 1.0000584e-05],
        "decay": [0.04, 0.048786797, 0.07, 0.091213203, 0.099999984],
        "momentum": [0.996, 0.99658579, 0.998, 0.99941421, 1.0],
        "decayed": [19, 38848],
    },
    "loca": {
        "code": "google-research/scenic 4a38d475ee89",
        "ran": (
            "its losses, Sinkhorn-Knopp and schedules in JAX, and their gradients, on what our networks give; what is "
            "decayed by the rule of its trainer"
        ),
        "losses": {"total": 6.7706678, "position": 3.8943808, "cluster": 5.8679585, "memax": -2.9916716},
        "gradients": {"network": 6.658729, "heads": 4.8465362},
        "centres": {},
        "rate": [0.0, 0.00089562457, 0.00054587674, 0.00016974565, 1.0000295e-05],
        "decay": [0.1, 0.1, 0.1, 0.1, 0.1],
        "momentum": [0.99599999, 0.99658573, 0.99799991, 0.99941415, 0.99999994],
        "decayed": [25, 48032],
    },
    "tec": {
        "code": "TEC's model file as published",
        "ran": (
            "its whole model with the weights copied, on targets of our base; schedule and groups are MAE's, which its"
            " paper names"
        ),
        "losses": {"total": 5.1120863, "fea": 1.8635561, "att": 3.2485304},
        "gradients": {"network": 0.64089137, "heads": 3.7835385},
        "centres": {},
        "rate": [0.0, 0.00057356995, 0.0003717947, 0.00011498434, 2.1900007e-10],
        "decay": [0.05, 0.05, 0.05, 0.05, 0.05],
        "momentum": [],
        "decayed": [33, 87136],
    },
    "sit": {
        "code": "Sara-Ahmed/SiT 7f22e9cd1496",
        "ran": (
            "its network and heads with the weights copied (second activation and bias a pixel as ours), SimCLR, the "
            "error of pixels, schedules and groups"
        ),
        "losses": {"total": 2.3086376, "rec": 0.81246573, "cls": 0.74808598},
        "gradients": {"network": 21.13071, "heads": 7.0882429},
        "centres": {},
        "rate": [0.0, 0.001762281, 0.0010546118, 0.00031314439, 1.0005865e-06],
        "decay": [0.04, 0.048786797, 0.07, 0.091213203, 0.099999984],
        "momentum": [0.996, 0.99658579, 0.998, 0.99941421, 1.0],
        "decayed": [18, 43360],
    },
}
