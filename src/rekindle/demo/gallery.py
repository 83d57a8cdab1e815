# SPDX-License-Identifier: Apache-2.0
"""Pictures of a base and the model adapted from it, on the same scenes and on the same scales."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rekindle.adapters.saved import load_backbone
from rekindle.data.segmentation import SegmentationFolder
from rekindle.evaluation.extractors import FeatureExtractor
from rekindle.reporting.pictures import enlarged, joint_colours, overlay, write_curves, write_grid
from rekindle.reporting.summary import Picture

SHOWN = 5


def draw_pictures(base_model: Path, run: Path, val: SegmentationFolder, folder: Path) -> list[Picture]:
    """Write colours of the patch tokens and attention, before and after, and the curves of the run.

    Args:
        base_model: the checkpoint that the run started from.
        run: the run's folder.
        val: scenes to look at; the first few are taken.
        folder: of the PNG files, made if it is not there.

    """
    chosen = range(min(SHOWN, len(val)))
    images = torch.stack([val.read(i)[0] for i in chosen])
    colours = np.asarray(val.colors, dtype=np.uint8)
    masks = colours[np.stack([val.read(i)[1].numpy() for i in chosen])]
    base, adapted = (look(str(model), images) for model in (base_model, run))
    pixels = images.permute(0, 2, 3, 1).numpy()
    size = pixels.shape[1:3]
    folder.mkdir(parents=True, exist_ok=True)
    before, after = joint_colours([base.patches, adapted.patches])
    write_grid(
        folder / "pca.png",
        {
            "scene": pixels,
            "base": enlarged(before, size),
            "adapted": enlarged(after, size),
            "classes": masks,
        },
        zoom=2,
    )
    high = float(np.percentile(np.concatenate([base.attention, adapted.attention]), 99.5))
    write_grid(
        folder / "attention.png",
        {
            "scene": pixels,
            "base": overlay(pixels, base.attention, low=0.0, high=high),
            "adapted": overlay(pixels, adapted.attention, low=0.0, high=high),
        },
        zoom=2,
    )
    steps, terms = read_curves(run / "metrics.jsonl")
    write_curves(folder / "curves.png", steps, terms, smooth=max(1, len(steps) // 20))
    return [
        Picture(
            folder / "pca.png",
            "Patch tokens, before and after",
            "Three principal components of the patch tokens as red, green and blue, fitted to base and "
            "adapted model together: a colour means the same in both rows. Below, the true classes.",
        ),
        Picture(
            folder / "attention.png",
            "Attention of the class token, before and after",
            f"Last block, mean over the heads, one scale for both rows: dark is 0, pale is {high:.3f} and more.",
        ),
        Picture(
            folder / "curves.png",
            "Losses of the adaptation",
            "Every term of GLARE at every step, and its running mean. A level says little: targets move.",
        ),
    ]


@dataclass(frozen=True)
class Looked:
    """Patch tokens [n, gh, gw, D] and attention of the class token, mean over the heads [n, gh, gw]."""

    patches: NDArray[np.float32]
    attention: NDArray[np.float32]


def look(model: str, images: torch.Tensor) -> Looked:
    """Return what a model sees in images, uint8 [n, 3, H, W]."""
    backbone, _ = load_backbone(model)
    pixels = FeatureExtractor(backbone).normalise(images)
    with torch.inference_mode():
        tokens = backbone(pixels, cls_attention=True)
    return Looked(tokens.patches.numpy(), tokens.cls_attention.mean(dim=1).numpy())


def read_curves(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Return steps and terms of the loss from a run's metrics.jsonl; the total first."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {
        "loss": "total",
        "glob": "glob (eq. 4)",
        "reg": "reg (eq. 7)",
        "loc1": "loc1 (eq. 8)",
        "loc2": "loc2 (eq. 9)",
    }
    terms = {label: [line[name] for line in lines] for name, label in names.items() if name in lines[0]}
    return [line["step"] for line in lines], terms
