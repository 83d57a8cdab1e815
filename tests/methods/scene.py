# SPDX-License-Identifier: Apache-2.0
"""Tiny backbones, batches and methods that the tests of methods share."""

from __future__ import annotations

from typing import Any

import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.rng import seeded_default
from rekindle.methods.base import Method
from rekindle.methods.dino import Dino, DinoOptions
from rekindle.methods.glare import Glare
from rekindle.methods.glare_options import GlareOptions
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.views.batch import ViewBatch
from rekindle.views.multicrop import MultiCrop, collate_views
from rekindle.views.options import ViewsOptions

ARCH = "vit:width=32,depth=2,heads=2,patch=8,img=32"
SMALL_HEAD: dict[str, Any] = {"num_prototypes": 32, "head_hidden": 32, "head_bottleneck": 16}
SMALL_REGIONS: dict[str, Any] = {"region_min_patches": 1, "region_max_patches": 3}
VIEWS = ViewsOptions(global_size_px=32, local_size_px=16, num_local=2)


def tiny_backbone(train: str = "adapters", *, seed: int = 0, arch: str = ARCH, blocks: int | None = None) -> Backbone:
    options = NetworkOptions(drop_path=0.0)
    backbone, _ = create_backbone(arch, options, init="random", seed=seed)
    with seeded_default(seed, "attach"):
        attach(backbone, AdapterOptions(rank=8, blocks=blocks), train=train)  # type: ignore[arg-type]
    return backbone


def tiny_batch(size: int = 3, *, seed: int = 0, views: ViewsOptions = VIEWS) -> ViewBatch:
    crops = MultiCrop(views)
    draw = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, 9, 12), generator=draw, dtype=torch.uint8) for _ in range(size)]
    large = [image.repeat_interleave(5, 1).repeat_interleave(5, 2) for image in images]
    batch = collate_views([(i, (), crops(image, torch.Generator().manual_seed(i))) for i, image in enumerate(large)])
    return batch.normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def tiny_glare(train: str = "adapters", *, arch: str = ARCH, **options: Any) -> Glare:
    backbone = tiny_backbone(train, arch=arch)
    with seeded_default(0, "method"):
        return Glare(GlareOptions(**{**SMALL_HEAD, **SMALL_REGIONS, **options}), backbone)


def tiny_dino(train: str = "adapters", **options: Any) -> Dino:
    backbone = tiny_backbone(train)
    with seeded_default(0, "method"):
        return Dino(DinoOptions(**{**SMALL_HEAD, **options}), backbone)


def assert_same_gradients(ours: Method, plain: Method, *, atol: float) -> int:
    """Compare the gradients of all that trains, relative 1e-5 and absolute to each tensor's largest number. Returns how many."""
    theirs, compared = dict(plain.named_parameters()), 0
    for label, parameter in ours.named_parameters():
        if parameter.requires_grad:
            found, wanted = parameter.grad, theirs[label].grad
            assert found is not None and wanted is not None, label
            scale = float(wanted.abs().max())
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol * scale + 1e-9, msg=label)
            compared += 1
    return compared
