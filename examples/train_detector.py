# SPDX-License-Identifier: Apache-2.0
"""Fine-tune an exported model in a real detector: torchvision's Mask R-CNN on ViTDet's simple feature pyramid.

    rekindle export runs/tec --format timm --out exported
    python examples/train_detector.py exported --data my_coco --steps 2000 --out detector.pt

`exported` is a folder of `rekindle export --format timm` (read by timm alone), or any other MODEL folder, adapters included.
`--data` is a folder with COCO's `annotations/instances_train.json` and the images in `train`; without it squares and discs
are drawn. After Li et al., "Exploring plain vision transformer backbones for object detection": the last map alone, rescaled
to strides 4 to 32 (of patches of 16 pixels). Attention stays global and the rate the same for all blocks; TEC's table 7 has
Cascade Mask R-CNN and the toolkits' long schedules, so read the figures as of this detector.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes

import rekindle

BASE = Path(__file__).parents[1] / "bases" / "dino-vit-tiny-16.safetensors"
LEVELS = ("4", "8", "16", "32", "64")
Sample = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Loaded:
    """A network with timm's `forward_intermediates`, every weight free, and what a detector has to know of it."""

    model: nn.Module
    patch: int
    width: int
    mean: list[float]
    std: list[float]


def load_model(folder: Path) -> Loaded:
    """Return the network of an exported folder, or of any other MODEL folder."""
    if (folder / "factory.json").is_file():
        recipe = json.loads((folder / "factory.json").read_text())
        model: Any = timm.create_model(recipe["name"], pretrained=False, **recipe["kwargs"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        pixels = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        patch, width, mean, std = model.patch_embed.patch_size[0], model.embed_dim, pixels["mean"], pixels["std"]
    else:
        model = rekindle.load(folder)
        patch, width, mean, std = model.patch_size, model.width, list(model.mean), list(model.std)
    return Loaded(model.train().requires_grad_(True), patch, width, mean, std)


class SimplePyramid(nn.Module):
    """The last map of a plain ViT at strides 4, 8, 16 and 32 (for patches of 16), and one more by pooling.

    Args:
        model: a network with timm's `forward_intermediates`.
        width: of its tokens.
        channels: of the pyramid.

    """

    def __init__(self, model: nn.Module, width: int, channels: int) -> None:
        super().__init__()
        self.model, self.out_channels = model, channels
        half, quarter = width // 2, width // 4
        doubled = nn.ConvTranspose2d(width, half, 2, stride=2)
        scales = [
            nn.Sequential(doubled, LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, stride=2)),
            nn.ConvTranspose2d(width, half, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(found, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for scale, found in zip(scales, (quarter, half, width, width), strict=True)
        )

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels by name."""
        model: Any = self.model
        (last,) = model.forward_intermediates(pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
        maps = [level(last) for level in self.levels]
        return OrderedDict(zip(LEVELS, [*maps, nn.functional.max_pool2d(maps[-1], 1, stride=2)], strict=True))


def detector(folder: Path, num_classes: int, *, size_px: int, channels: int) -> MaskRCNN:
    """Return Mask R-CNN on an exported model; class 0 is the background."""
    loaded = load_model(folder)
    sizes = tuple((4.0 * int(stride) * loaded.patch / 16,) for stride in LEVELS)
    pools = [MultiScaleRoIAlign(LEVELS[:4], size, sampling_ratio=2) for size in (7, 14)]
    return MaskRCNN(
        SimplePyramid(loaded.model, loaded.width, channels),
        min_size=size_px,
        max_size=2 * size_px,
        image_mean=loaded.mean,
        image_std=loaded.std,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(LEVELS)),
        box_roi_pool=pools[0],
        box_head=TwoMLPHead(channels * 49, 4 * channels),
        box_predictor=FastRCNNPredictor(4 * channels, num_classes),
        mask_roi_pool=pools[1],
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        size_divisible=2 * loaded.patch,
    )


def drawn(count: int, side: int = 64) -> Iterator[Sample]:
    """Yield images with a square (class 1) and a disc (class 2), as torchvision's detectors read them."""
    draw = random.Random(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for _ in range(count):
        radius = side // 8
        (top, left), (row, column) = ([draw.randrange(radius, side - radius) for _ in range(2)] for _ in range(2))
        square = ((y - top).abs() < radius) & ((x - left).abs() < radius)
        disc = ((y - row) ** 2 + (x - column) ** 2 < radius**2) & ~square
        image = torch.full((3, side, side), 0.4)
        image[0, square], image[2, disc] = 1.0, 1.0
        yield image, target([(1, square), (2, disc)])


def labelled(root: Path, split: str) -> tuple[list[Sample], int]:
    """Return images with their objects, of COCO's annotations/instances_<split>.json, and how many classes there are.

    Crowds are left out, for torchvision's detectors have no place for them. Raises: ValueError for an object without outline.
    """
    told = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    number_of = {entry["id"]: i for i, entry in enumerate(sorted(told["categories"], key=lambda c: c["id"]), start=1)}
    objects: dict[int, list[tuple[int, Tensor]]] = {}
    images = {image["id"]: image for image in told["images"]}
    for entry in told["annotations"]:
        if not entry.get("iscrowd"):
            image = images[entry["image_id"]]
            mask = outlined(entry, image["height"], image["width"])
            objects.setdefault(entry["image_id"], []).append((number_of[entry["category_id"]], mask))
    samples = [(read(root / split / images[i]["file_name"]), target(found)) for i, found in sorted(objects.items())]
    return samples, len(number_of) + 1


def outlined(entry: dict[str, Any], height: int, width: int) -> Tensor:
    """Return the mask [H, W] of an object's polygons."""
    if not isinstance(entry["segmentation"], list):
        raise ValueError(f"annotation {entry['id']} has no polygons; write its outline as [[x, y, x, y, ...], ...]")
    canvas = Image.new("1", (width, height))
    for outline in entry["segmentation"]:
        ImageDraw.Draw(canvas).polygon(outline, fill=1)
    return torch.from_numpy(np.array(canvas))


def read(path: Path) -> Tensor:
    """Return an image, [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255


def target(objects: list[tuple[int, Tensor]]) -> dict[str, Tensor]:
    """Return boxes, classes and masks of the objects that have an area."""
    boxes = [(label, mask, masks_to_boxes(mask[None])[0]) for label, mask in objects if bool(mask.any())]
    boxes = [(label, mask, box) for label, mask, box in boxes if bool((box[2:] > box[:2]).all())]
    return {
        "boxes": torch.stack([box for _, _, box in boxes]) if boxes else torch.zeros(0, 4),
        "labels": torch.tensor([label for label, _, _ in boxes], dtype=torch.int64),
        "masks": torch.stack([mask for _, mask, _ in boxes]).to(torch.uint8) if boxes else torch.zeros(0, 1, 1),
    }


def train(network: MaskRCNN, samples: list[Sample], *, steps: int, batch_size: int, lr: float) -> list[float]:
    """Train with AdamW and return the loss of every step."""
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    losses = []
    for step in range(steps):
        chosen = [samples[(step * batch_size + i) % len(samples)] for i in range(batch_size)]
        images = [image.to(device) for image, _ in chosen]
        loss = sum(network(images, [{k: v.to(device) for k, v in told.items()} for _, told in chosen]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {losses[-1]:.3f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune an exported model in Mask R-CNN.")
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        help="folder of `rekindle export`, or another MODEL; without it, a few small steps of BASE",
    )
    parser.add_argument("--data", type=Path, help="folder in COCO's layout; squares and discs are drawn without it")
    parser.add_argument("--split", default="train", help="split of the data")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--size-px", type=int, default=512, help="short side of the images")
    parser.add_argument("--channels", type=int, default=256, help="of the pyramid and the heads")
    parser.add_argument("--out", type=Path, help="file for the trained detector's weights")
    asked = parser.parse_args()
    if asked.model is None:  # a look at how it goes
        asked.model, asked.steps, asked.size_px, asked.channels = BASE, 6, 128, 32
    torch.manual_seed(0)
    samples, num_classes = labelled(asked.data, asked.split) if asked.data else ([*drawn(16)], 3)
    if not samples:
        parser.error(f"--data {asked.data}: the split {asked.split} shows no object")
    network = detector(asked.model, num_classes, size_px=asked.size_px, channels=asked.channels)
    network.to("cuda" if torch.cuda.is_available() else "cpu").train()
    losses = train(network, samples, steps=asked.steps, batch_size=asked.batch_size, lr=asked.lr)
    tenth = max(1, len(losses) // 10)
    print(f"loss: {sum(losses[:tenth]) / tenth:.3f} at first, {sum(losses[-tenth:]) / tenth:.3f} at last")
    if asked.out:
        torch.save(network.state_dict(), asked.out)


if __name__ == "__main__":
    main()
