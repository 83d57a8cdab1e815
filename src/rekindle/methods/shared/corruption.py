# SPDX-License-Identifier: Apache-2.0
"""Corruption of the student's large views, and the reconstruction of what is gone (MMC, SiT, MC-SSL)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import MicroBatch, PictureRows
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.mlp_head import MlpHead
from rekindle.objectives.reconstruction import as_patches, corrupted_pixel_error
from rekindle.views.batch import ViewBatch
from rekindle.views.group_masks import AreaRange, BlockFill, CorruptedViews, Lenders, corrupt_groups
from rekindle.views.marking import as_bytes

LAYERS = 6  # of which the restored views are drawn


RecNorm = Literal["masked", "together", "all"]


class CorruptionOptions(Options):
    """Corruption of the student's large views, and their reconstruction; defaults are MMC's."""

    fill: BlockFill = "noise"
    """What groups of pixels are replaced by: standard normal noise, zeros, or pixels of the same view."""
    replace_p: float = Field(0.35, ge=0, le=1)
    """Probability that a view is corrupted with pixels of another image instead."""
    noise_area: AreaRange = (0.5, 0.75)
    """Smallest and largest share of a view that `fill` covers."""
    replace_area: AreaRange = (0.3, 0.3)
    """Smallest and largest share of a view that another image covers."""
    align_px: int | None = Field(None, ge=1)
    """Corners and sides of the groups are multiples of this many pixels; None: the backbone's patch."""
    max_block: float = Field(0.3, gt=0, le=1)
    """Longest side of a rectangle, as a share of the view's side."""
    rec_norm: RecNorm = "masked"
    """The mean of the reconstruction error runs over the corrupted pixels of each view, over those of both views together, or
    over all pixels (eq. 1 as printed)."""
    pixel_hidden: int | None = Field(4096, ge=1)
    """Width of the hidden layers of the head that reconstructs pixels; None: the backbone's."""
    pixel_layers: int = Field(3, ge=1)
    """Layers of that head."""

    @model_validator(mode="after")
    def _areas(self) -> CorruptionOptions:
        for name, (low, high) in (("noise_area", self.noise_area), ("replace_area", self.replace_area)):
            if not 0 < low <= high < 1:
                raise ValueError(f"{name} is a smallest and a largest share in (0, 1); got {low} {high}")
        return self


def new_pixel_head(config: CorruptionOptions, backbone: Backbone) -> MlpHead:
    """Return a fresh head from a patch token to the pixels of its patch: linear maps with GELU in between."""
    hidden = [config.pixel_hidden or backbone.width] * (config.pixel_layers - 1)
    return MlpHead(backbone.width, *hidden, 3 * backbone.patch_size**2, norm="none", activation=nn.GELU)


def corrupt_views(
    config: CorruptionOptions,
    pixels: Float[Tensor, "V B 3 H W"],
    patch_size: int,
    progress: Progress,
    lenders: Lenders | None = None,
) -> CorruptedViews:
    """The student's large views, corrupted as the options say. Args: lenders, all views of the step; None: these are all."""
    return corrupt_groups(
        pixels,
        progress,
        fill=config.fill,
        replace_p=config.replace_p,
        fill_area=config.noise_area,
        replace_area=config.replace_area,
        align_px=config.align_px or patch_size,
        max_block=config.max_block,
        lenders=lenders,
    )


def corrupt_step(
    config: CorruptionOptions, micro_batches: Sequence[MicroBatch], patch_size: int
) -> list[CorruptedViews]:
    """The large views of each micro-batch of a step, corrupted; pixels come from any image of the step."""
    clean = [batch.global_views.pixels for batch, _ in micro_batches]
    lenders = Lenders.of_step(clean) if config.replace_p > 0 else None
    return [
        corrupt_views(config, pixels, patch_size, progress, lenders)
        for pixels, (_, progress) in zip(clean, micro_batches, strict=True)
    ]


def corrupted_pixels(config: CorruptionOptions, corrupted: CorruptedViews) -> Float[Tensor, "V B"]:
    """How many pixels of each view the mean of L_REC runs over; on the CPU."""
    cells = corrupted.cells.flatten(2)
    counted = torch.full(cells.shape[:2], cells.shape[-1]) if config.rec_norm == "all" else cells.sum(dim=-1)
    pixels = counted.float() * corrupted.align_px**2
    return pixels.mean(dim=0).expand_as(pixels) if config.rec_norm == "together" else pixels


def hidden_patches(corrupted: CorruptedViews, patch_size: int) -> Bool[Tensor, "V B P"]:
    """Patches with at least one corrupted pixel; on the CPU."""
    views, images = corrupted.cells.shape[:2]
    if corrupted.align_px == patch_size:
        return corrupted.cells.flatten(2)
    pooled = F.max_pool2d(corrupted.mask().flatten(0, 1)[:, None].float(), patch_size)
    return pooled.bool().view(views, images, -1)


def reconstruction(
    config: CorruptionOptions,
    head: nn.Module,
    patches: Float[Tensor, "V B P D"],
    clean: Float[Tensor, "V B 3 H W"],
    corrupted: CorruptedViews,
    patch_size: int,
) -> Float[Tensor, "V B"]:
    """The clean pixels from the student's patch tokens: each view's absolute error, summed over corrupted pixels.

    The head works on each patch by itself, so where only corrupted pixels count it sees only the patches that have some.
    """
    device, errors, num_patches = clean.device, [], patches.shape[2]
    chosen = hidden_patches(corrupted, patch_size)
    mask = _pixels_of_patches(corrupted.mask(), patch_size)
    for view, tokens in enumerate(patches):
        rows = tokens.flatten(0, 1)
        target = as_patches(clean[view], patch_size).reshape(len(rows), -1, 3)
        covered, index = mask[view].flatten(0, 1), torch.arange(len(rows))
        if config.rec_norm != "all":
            index = chosen[view].flatten().nonzero()[:, 0]  # known without asking the device
            covered = covered[index]
        at = index.to(device, non_blocking=True)
        rows, target = rows[at], target[at]
        predicted = head(rows).view(len(rows), -1, 3)
        error = corrupted_pixel_error(predicted, target, covered.to(device, non_blocking=True))
        errors.append(error.new_zeros(len(tokens)).index_add(0, at // num_patches, error))
    return torch.stack(errors)


def reconstruction_mean(errors: Float[Tensor, "V B"], counts: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """L_REC, eq. 1: mean over the pixels that count, then over views. Args: counts, this part's share (`count_per_part`)."""
    return (errors.sum(dim=1) / counts).mean()


def corruption_pictures(
    config: CorruptionOptions, head: nn.Module | None, backbone: Backbone, batch: ViewBatch, progress: Progress
) -> PictureRows:
    """Clean views, what the student sees of them, and what it restores; then the same from each of the last six blocks.

    The blocks' rows show whole restored views with the mean absolute error of the corrupted pixels, and how much a block changes
    what the one before it restores.
    """
    clean = batch.global_views.pixels[0]
    corrupted = corrupt_views(config, clean[None], backbone.patch_size, progress)
    mask = corrupted.mask()[0][:, None].to(clean.device)
    rows = {"clean": clean, "corrupted": corrupted.pixels[0]}
    pictures = {"corruption": rows}
    if head is not None:
        first = max(0, backbone.depth - LAYERS)
        restored = restored_by_layer(head, backbone, corrupted.pixels[0], range(first, backbone.depth))
        rows["restored"] = torch.where(mask, restored[-1], clean)
        std = torch.tensor(backbone.std, device=clean.device)[:, None, None]
        mean = torch.tensor(backbone.mean, device=clean.device)[:, None, None]
        layers = {}
        for number, views in enumerate(restored, start=first + 1):
            error = ((views - clean).abs() * mask).sum() / (3 * mask.sum()).clamp(min=1)
            layers[f"block {number}: error {float(error):.3f}"] = views
        for number, (before, after) in enumerate(pairwise(restored), start=first + 2):
            layers[f"block {number} - {number - 1}"] = ((after - before).abs() * std - mean) / std  # black is no change
        pictures["layers"] = layers
    return {
        stem: {title: as_bytes(views, backbone.mean, backbone.std) for title, views in found.items()}
        for stem, found in pictures.items()
    }


def restored_by_layer(
    head: nn.Module, backbone: Backbone, corrupted: Float[Tensor, "B 3 H W"], blocks: Sequence[int]
) -> list[Float[Tensor, "B 3 H W"]]:
    """Return the views that the head restores from the patch tokens of each block, after the final norm (MMC, figure 6)."""
    patch, size = backbone.patch_size, corrupted.shape[-2:]
    grid = size[0] // patch, size[1] // patch
    found = []
    for tokens in backbone.intermediate(corrupted, blocks):
        pixels = head(tokens.patches.flatten(0, 2)).view(len(corrupted), *grid, patch, patch, 3)
        found.append(pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(corrupted), 3, *size).float())
    return found


def _pixels_of_patches(mask: Tensor, patch_size: int) -> Tensor:
    """[V, B, H, W] -> [V, B, P, patch_size^2], pixels of a patch row by row as in `as_patches`."""
    views, images, height, width = mask.shape
    cut = mask.view(views, images, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.transpose(3, 4).reshape(views, images, -1, patch_size**2)
