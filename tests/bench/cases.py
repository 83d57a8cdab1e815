# SPDX-License-Identifier: Apache-2.0
"""Cases that a test can afford."""

from __future__ import annotations

from rekindle.bench.options import BenchOptions
from rekindle.bench.running import build_case
from rekindle.views.options import ViewsOptions

TINY_VIT = "vit:width=32,depth=2,heads=2,patch=16,img=32"
VIEWS = ViewsOptions(global_size_px=64, local_size_px=32, num_local=2)


def tiny(name: str, **changes: object) -> dict[str, object]:
    """A case as `rekindle bench` makes it, small."""
    small = {"backbone": TINY_VIT, "batch_size": 4, "num_prototypes": 16, "accelerator": "cpu", "views": VIEWS}
    small |= {"height": 48, "width": 64, "num_images": 8}
    return build_case(BenchOptions.model_validate({"name": name, **small, **changes}))


def step_case(
    *,
    images: int,
    rank: int,
    precision: str = "fp32",
    train: str = "adapters",
    width: int = 384,
    depth: int = 12,
    blocks: int | None = None,
) -> dict[str, object]:
    """A step on views of the default sizes, the batch in one share: ViT-S/16 unless told otherwise, K = 8192."""
    return {
        "backbone": f"vit:width={width},depth={depth},heads={width // 64},patch=16,img=224",
        "train": train,
        "rank": rank,
        "blocks": blocks,
        "batch_size": images,
        "micro_batch_size": images,
        "precision": precision,
        "num_prototypes": 8192,
        "head_hidden": 2048,
        "head_bottleneck": 256,
        "device": "cpu",
        "seed": 0,
        "height": 360,
        "width": 480,
        "views": ViewsOptions().model_dump(),
    }
