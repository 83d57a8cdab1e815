# SPDX-License-Identifier: Apache-2.0
"""Leopart (arXiv:2204.13101): MkuuWaUjinga/leopart at 7835701; the one configuration there that starts from random weights."""

from __future__ import annotations

from rekindle.methods.shared.stated import Stated, at, training

CONFIG, VIEWS = "Leopart, train_in_scratch_config.yml", "Leopart, leopart_transforms.py"

STATED = {
    **training(CONFIG, epochs=400, batch=64),
    **at(
        CONFIG,
        {
            "optim.lr_per_256": 1e-4,
            "optim.lr_is_peak": True,
            "optim.backbone_lr_factor": 0.1,
            "optim.final_lr": 0.0,
            "optim.weight_decay": 0.04,
            "optim.final_weight_decay": 0.5,
            "views.num_local": 4,
            "views.global_size_px": 224,
            "views.local_size_px": 96,
            "views.global_scale": (0.25, 1.0),
            "views.local_scale": (0.05, 0.25),
            "leopart.num_prototypes": 300,
            "leopart.head_hidden": 2048,
            "leopart.head_bottleneck": 256,
            "leopart.student_temperature": 0.1,
            "leopart.teacher_temperature": (0.05, 0.05),
            "leopart.sinkhorn_iterations": 3,
            "leopart.momentum": (0.9995, 1.0),
            "leopart.queue_length": 8192,
            "leopart.cells": 7,
        },
    ),
    "leopart.mask": Stated("all", CONFIG, "foreground from a pretrained start, as its train_coco_config.yml"),
    **at(
        "Leopart, leopart.py",
        {
            "network.drop_path": 0.1,
            "optim.warmup_epochs": 0.0,
            "optim.clip_norm": 0.0,
            "leopart.queue_per_image": 10,
            "leopart.attention_mass": 0.6,
            "leopart.attention_blur": 0.6,
            "leopart.norm_last_layer": True,
            "leopart.export": "student",
        },
    ),
    **at(
        VIEWS,
        {
            "views.overlap": "reject",
            "views.min_overlap": 0.02,
            "views.hflip_p": 0.0,
            "views.jitter_p": 0.8,
            "views.brightness": 0.8,
            "views.contrast": 0.8,
            "views.saturation": 0.8,
            "views.hue": 0.2,
            "views.grey_p": 0.2,
            "views.blur_p": (0.5, 0.5, 0.5),
            "views.blur_sigma": (0.1, 2.0),
            "views.solarize_p": (0.0, 0.0, 0.0),
        },
    ),
}
