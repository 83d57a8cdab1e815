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
