# SPDX-License-Identifier: Apache-2.0
"""Draw what a linear head makes of each model's frozen features: label and predicted class maps, side by side.

python scripts/picture_maps.py --data camvid --out docs/images/maps-camvid.png base=bases/dino-vit-tiny-16.safetensors adapted=RUN

The images are not chosen by hand: they stand at fixed places of the validation images in the order of the first model's own IoU
(spread evenly over it). Maps only; `--with-images` shows the images as well, where their terms allow it. One head, seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.drawing.worst_images import class_colours
from rekindle.engine.watcher import LoggingWatcher
from rekindle.evaluation.segmentation.linear_seg import LinearSeg
from rekindle.evaluation.segmentation.options import LinearSegOptions
from rekindle.evaluation.training.predicted_maps import KeptMap, MapPicture, PredictedMaps
from rekindle.measuring.models import load_model
from rekindle.measuring.options import ModelOptions

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

IGNORED = (255, 255, 255)


def main() -> None:
    """Measure, choose, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=MODEL; the first one's order chooses the images")
    parser.add_argument("--data", required=True, help="folder of labelled images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3, help="images to show")
    parser.add_argument("--size-px", type=int, default=112)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--with-images", action="store_true")
    asked = parser.parse_args()
    options = LinearSegOptions(size_px=asked.size_px, steps=asked.steps)
    train, test = (SegmentationFolder(asked.data, split) for split in ("train", "val"))
    maps = {}
    for name, model in (entry.split("=", 1) for entry in asked.models):
        extractor = load_model(model, ModelOptions(), LoggingWatcher()).extractor
        protocol = LinearSeg(options, extractor, train, test, print, keep_images=len(test))
        protocol.check()
        protocol.prepare()
        outcome = protocol.run(0)
        assert outcome.maps is not None
        print(f"{name}: mIoU {100 * outcome.metrics['mIoU']:.2f} %")
        maps[name] = outcome.maps
    draw(maps, test, asked.count, with_images=asked.with_images).savefig(asked.out, dpi=90)


def draw(maps: dict[str, PredictedMaps], data: SegmentationFolder, count: int, *, with_images: bool) -> Figure:
    """One row per image, one column for the label and for each model; titles are the image's own IoU."""
    kept = {name: {entry.index: entry for entry in found.worst} for name, found in maps.items()}
    order = [entry.index for entry in next(iter(maps.values())).worst]
    chosen = [order[len(order) * (2 * place + 1) // (2 * count)] for place in range(count)]
    colours = np.array([*(data.colors or class_colours(data.num_classes)), IGNORED], np.uint8)
    columns = with_images + 1 + len(maps)
    size = 2.7 * columns, 2.1 * count + 0.6
    figure, panels = plt.subplots(count, columns, figsize=size, squeeze=False, layout="constrained")
    for row, index in zip(panels, chosen, strict=True):
        pictures: dict[str, tuple[KeptMap, MapPicture]] = {
            name: (found[index], maps[name].picture(found[index])) for name, found in kept.items()
        }
        any_of_them = next(iter(pictures.values()))[1]
        drawn = [("image", any_of_them.image.permute(1, 2, 0).numpy())] if with_images else []
        drawn += [("label", colours[_colour_index(any_of_them.label.numpy(), data)])]
        drawn += [
            (f"{name}: {100 * entry.iou:.0f} %", colours[_colour_index(picture.prediction.numpy(), data)])
            for name, (entry, picture) in pictures.items()
        ]
        for panel, (title, image) in zip(row, drawn, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set_title(title, fontsize=9)
            panel.set_axis_off()
    legend = [Patch(color=mpl.colors.to_hex(colours[i] / 255), label=name) for i, name in enumerate(data.names)]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(6, len(legend)), fontsize=8, frameon=False)
    return figure


def _colour_index(ids: np.ndarray, data: SegmentationFolder) -> np.ndarray:
    """Class ids as places in the colours, where what is ignored has the last one."""
    return np.where(ids == data.ignore_index, data.num_classes, ids)


if __name__ == "__main__":
    main()
