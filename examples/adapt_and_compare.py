# SPDX-License-Identifier: Apache-2.0
"""Train a tiny base on one kind of image, adapt it to another, and ask whether that helped. Synthetic, under a minute.

    python examples/adapt_and_compare.py

The settings are far too small for good features; the point is which calls one makes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import rekindle
from rekindle.data.scenes import write_scenes
from rekindle.measuring.compare import compare

SMALL = {
    "steps": 6,
    "batch_size": 8,
    "views": {"global_size_px": 64, "local_size_px": 32, "num_local": 2},
    "engine": {"tensorboard": False},
    "data": {"num_workers": 0},
}
HEAD = {"num_prototypes": 64, "head_hidden": 64, "head_bottleneck": 32}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "studio", "studio", {"train": 16}, size_px=64, seed=0)
        write_scenes(root / "field", "field", {"train": 16, "val": 8}, size_px=64, seed=1)
        base = rekindle.pretrain(
            images=root / "studio" / "images",
            backbone="vit:width=64,depth=2,heads=2,patch=8,img=64",
            init="random",
            train="all",
            method="dino",
            out=root / "base",
            dino=HEAD,
            **SMALL,
        )
        adapted = rekindle.pretrain(
            images=root / "field" / "images" / "train",
            backbone=str(base.run),
            method="glare",
            out=root / "adapted",
            adapter={"rank": 16},
            glare=HEAD,
            **SMALL,
        )
        result = compare(
            str(base.run),
            [str(adapted.run)],
            str(root / "field"),
            protocol=["dense-retrieval"],
            seeds=1,
            out=str(root / "comparison"),
            dense_retrieval={"size_px": 64, "memory_size": 512},
        )
        for row in result.rows:
            print(f"{row.protocol}: {row.verdict.verdict}, difference {row.verdict.difference:+.3f} {row.metric}")
        tokens = rekindle.extract(adapted.run, next((root / "field" / "images" / "val").iterdir()))
        print(f"patch features of one image: {tuple(tokens.patches.shape)}")


if __name__ == "__main__":
    main()
