# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one GLARE step of a ViT-S/16 on the CPU: adapters on a frozen backbone against all weights.

    python scripts/measure_memory.py

Each case runs in a process of its own; the figure is the largest resident set, and what it adds to the process before the step.
"""

from __future__ import annotations

import resource
import subprocess
import sys

ARCH = "vit:width=384,depth=12,heads=6,patch=16,img=224"
BATCH = 4


def measure(train: str) -> None:
    import torch

    from rekindle.adapters.attach import attach
    from rekindle.adapters.options import AdapterOptions
    from rekindle.core.progress import Progress
    from rekindle.engine.optimizer import build_optimizer
    from rekindle.engine.options import OptimOptions
    from rekindle.methods.glare import Glare
    from rekindle.methods.glare_options import GlareOptions
    from rekindle.networks.checkpoints.create import create_backbone
    from rekindle.networks.options import NetworkOptions
    from rekindle.views.multicrop import MultiCrop, collate_views
    from rekindle.views.options import ViewsOptions

    backbone, _ = create_backbone(ARCH, NetworkOptions(), init="random")
    attach(backbone, AdapterOptions(), train=train)  # type: ignore[arg-type]
    method = Glare(GlareOptions(), backbone).train()
    optimizer = build_optimizer(method, OptimOptions())
    crop = MultiCrop(ViewsOptions())
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 360, 480), generator=draw, dtype=torch.uint8) for _ in range(BATCH)]
    batch = collate_views([(i, (), crop(image, draw)) for i, image in enumerate(images)])
    batch = batch.normalised(backbone.mean, backbone.std)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(2):
        method(batch, Progress(step, 10)).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(Progress(step, 10))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    print(
        f"{train}: peak {peak / 2**20:.2f} GiB, step adds {(peak - before) / 2**20:.2f} GiB, {trained / 1e6:.2f} M numbers train"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for mode in ("adapters", "all"):
            subprocess.run([sys.executable, __file__, mode], check=True)
