# SPDX-License-Identifier: Apache-2.0
"""Train a tiny base on one kind of image, adapt it to another, and ask whether that helped. Drawn images, under a minute.

    python examples/adapt_and_compare.py

The settings are far too small for good features; the point is which calls one makes, and how labelled data lie on disk.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import rekindle

SMALL = {
    "steps": 6,
    "batch_size": 8,
    "views": {"global_size_px": 64, "local_size_px": 32, "num_local": 2},
    "engine": {"tensorboard": False},
    "data": {"num_workers": 0},
}
HEAD = {"num_prototypes": 64, "head_hidden": 64, "head_bottleneck": 32}


def draw_shapes(root: Path, split: str, count: int, colours: tuple[str, str]) -> None:
    """Write discs (class 1) and boxes (class 2) on a plain ground (class 0), with their masks."""
    draw = random.Random(split + colours[0])
    for folder in ("images", "masks"):
        (root / folder / split).mkdir(parents=True)
    for number in range(count):
        image, mask = Image.new("RGB", (64, 64), "dimgrey"), Image.new("L", (64, 64), 0)
        for class_id, colour in enumerate(colours, start=1):
            x, y = draw.randrange(40), draw.randrange(40)
            for canvas, fill in ((image, colour), (mask, class_id)):
                pen = ImageDraw.Draw(canvas)
                (pen.ellipse if class_id == 1 else pen.rectangle)((x, y, x + 20, y + 20), fill=fill)
        image.save(root / "images" / split / f"{number:03}.png")
        mask.save(root / "masks" / split / f"{number:03}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "disc", "box"], "ignore_index": 255}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_shapes(root / "studio", "train", 16, ("red", "blue"))
        draw_shapes(root / "field", "train", 16, ("orange", "green"))
        draw_shapes(root / "field", "val", 8, ("orange", "green"))
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
            backbone=base,
            method="glare",
            out=root / "adapted",
            adapter={"rank": 16},
            glare=HEAD,
            **SMALL,
        )
        verdict = rekindle.compare(
            base,
            [adapted],
            root / "field",
            protocol=["dense-retrieval"],
            seeds=1,
            out=root / "comparison",
            dense_retrieval={"size_px": 64, "memory_size": 512},
        )
        print(verdict)
        tokens = rekindle.extract(adapted, root / "field" / "images" / "val" / "000.png")
        print(f"patch features of one image: {tuple(tokens.patches.shape)}")


if __name__ == "__main__":
    main()
