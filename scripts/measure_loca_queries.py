# SPDX-License-Identifier: Apache-2.0
"""What a LOCA step costs with 10, 5, 2 and 1 queries, and with fewer kept patches of the large query.

    python scripts/measure_loca_queries.py [--arch vit:width=768,depth=12,heads=12,patch=16,img=224] [--rounds 3]

Operations are counted forward and backward (multiplications and additions of matrix products); times are medians of whole steps
without views and optimizer, cases taking turns. Speeds are relative to ten queries.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.progress import Progress
from rekindle.methods.loca import Loca
from rekindle.methods.loca_options import LocaOptions
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.views.batch import ViewBatch
from rekindle.views.multicrop import MultiCrop, collate_views
from rekindle.views.options import ViewsOptions

CASES = {
    "10 queries": (9, 0.36),
    "5 queries": (4, 0.36),
    "2 queries": (1, 0.36),
    "1 query": (0, 0.36),
    "10 queries, all patches kept": (9, 1.0),
}
PAPER = {"10 queries": 1.0, "5 queries": 1.5, "2 queries": 2.1, "1 query": 3.0}


def views(num_local: int, images: int) -> ViewBatch:
    """Views of random images."""
    crop = MultiCrop(ViewsOptions(num_local=num_local, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32)))
    draw = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, 256, 256), generator=draw, dtype=torch.uint8) for _ in range(images)]
    return collate_views([(i, (), crop(image, draw)) for i, image in enumerate(pixels)])


def main() -> None:
    """Count and time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="vit:width=768,depth=12,heads=12,patch=16,img=224")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    backbone, _ = create_backbone(asked.arch, NetworkOptions(), init="random")
    attach(backbone, AdapterOptions(), train="all")
    steps, counted = {}, {}
    for name, (num_local, keep) in CASES.items():
        method = Loca(LocaOptions(query_keep=keep, reference_grid=14), backbone).train()
        batch = views(num_local, asked.images).normalised(backbone.mean, backbone.std)

        def step(method: Loca = method, batch: ViewBatch = batch) -> None:
            method(batch, Progress(0, 10)).total.backward()
            method.zero_grad(set_to_none=True)

        with FlopCounterMode(display=False) as counter:
            step()
        steps[name], counted[name] = step, counter.get_total_flops() / asked.images
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(asked.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    first = statistics.median(times["10 queries"])
    for name in CASES:
        seconds = statistics.median(times[name])
        paper = f", paper {PAPER[name]:.1f}" if name in PAPER else ""
        print(
            f"{name}: {counted[name] / 1e9:.1f} GFLOP an image, {counted['10 queries'] / counted[name]:.2f} times fewer; "
            f"{seconds / asked.images:.2f} s an image, {first / seconds:.2f} times as fast{paper}"
        )


if __name__ == "__main__":
    main()
