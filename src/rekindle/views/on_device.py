# SPDX-License-Identifier: Apache-2.0
"""Views of a whole batch from its decoded images, on any device: the plans of the images, executed side by side.

Every step is an operation over all views of a size; what differs between views is a number in a tensor, or a list of rows
that the host knows from the plans and the device need not be asked for. Made for GPUs; on a CPU the worker's way is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rekindle.core.precision import full_precision
from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import LUMA, Photometric
from rekindle.views.plan import PlannedBatch, ViewPlan

_BYTES_AT_ONCE = 1 << 30
_COPIES = 6  # float32 copies of the views that live at the same time


class DeviceExecutor:
    """Makes the views of a batch where its images are."""

    def __init__(self, options: ViewsOptions) -> None:
        self._options = options

    def __call__(self, batch: PlannedBatch) -> ViewBatch:
        """Return the views as `MultiCrop` would make and `collate_views` gather them, uint8, on the images' device."""
        options, device = self._options, batch.pixels.device
        crops = Crops.stack([plan.crops() for plan in batch.plans], dim=1).to(device)
        last = 2 + options.num_local
        large = self._views(batch, range(2), options.global_size_px)
        small = self._views(batch, range(2, last), options.local_size_px) if options.num_local else None
        return ViewBatch(
            global_views=Views(large, crops[:2]),
            local_views=None if small is None else Views(small, crops[2:]),
            image_index=batch.image_index,
            skipped=batch.skipped,
        )

    def _views(self, batch: PlannedBatch, chosen: range, side: int) -> Tensor:
        """[V, B, 3, side, side], a few views of every image at a time, so that memory stays bounded."""
        images = batch.pixels
        size, height, _ = images.shape[0], *images.shape[-2:]
        bytes_per_view = 4 * 3 * size * side * max(height, _COPIES * side)
        step = max(1, _BYTES_AT_ONCE // bytes_per_view)
        parts = [chosen[first : first + step] for first in range(0, len(chosen), step)]
        return torch.cat([make_views(images, batch.plans, part, side) for part in parts])


@full_precision
def make_views(
    images: UInt8[Tensor, "B 3 H W"], plans: Sequence[ViewPlan], chosen: Sequence[int], side: int
) -> UInt8[Tensor, "V B 3 side side"]:
    """Make the views with the numbers `chosen` of every image.

    Args: images of different sizes are padded below and at the right; each plan knows its image's size.
    """
    placed = _Placed.of(plans, chosen, images.device)
    chains = [plan.chains[view] for view in chosen for plan in plans]
    pixels = _resample(images.float(), placed, side).flatten(0, 1)
    return _photometric(pixels, chains).view(len(chosen), len(plans), 3, side, side)


@dataclass(frozen=True)
class _Placed:
    """Boxes and flips, fields [V, B], float32: pixels, and 1 where mirrored."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    flipped_vertically: Tensor

    @classmethod
    def of(cls, plans: Sequence[ViewPlan], chosen: Sequence[int], device: torch.device) -> _Placed:
        rows = [
            [(b.top, b.left, b.height, b.width, *plan.flips[view]) for plan in plans for b in (plan.boxes[view],)]
            for view in chosen
        ]
        return cls(*torch.tensor(rows, dtype=torch.float32).to(device, non_blocking=True).unbind(-1))


def _resample(images: Float[Tensor, "B 3 H W"], placed: _Placed, side: int) -> Float[Tensor, "V B 3 side side"]:
    """Crop, flip and resize: products with a matrix per view and axis, rounded to levels after each as bytes would be."""
    batch, _, height, width = images.shape
    columns = resize_weights(placed.left, placed.width, placed.flipped, width, side)  # [V, B, side, W]
    views = columns.shape[0]
    rows = resize_weights(placed.top, placed.height, placed.flipped_vertically, height, side)
    along = images.flatten(1, 2) @ columns.permute(1, 3, 0, 2).flatten(2)  # [B, 3 H, V side]
    along = _levels(along).view(batch, 3, height, views, side).permute(3, 0, 2, 1, 4).flatten(3)
    return _levels(rows @ along).view(views, batch, side, 3, side).transpose(2, 3)


def resize_weights(
    start: Float[Tensor, "V B"], extent: Float[Tensor, "V B"], mirrored: Float[Tensor, "V B"], length: int, side: int
) -> Float[Tensor, "V B side length"]:
    """Weight of every pixel of an axis in every pixel of the view; rows sum to 1.

    The antialiased bicubic filter of torch and PIL (a = -0.5), stretched by the scale where the view is smaller than the
    crop, and cut off at the border of the crop.

    Args: start, extent of the crop in pixels; mirrored, 1 to reverse the view; length of the axis.
    """
    start, extent, mirrored = (value[..., None, None] for value in (start, extent, mirrored))
    out = torch.arange(side, device=start.device, dtype=torch.float32)[:, None]
    out = torch.where(mirrored > 0, side - 1 - out, out)
    place = torch.arange(length, device=start.device, dtype=torch.float32) - start
    scale = extent / side
    distance = ((place + 0.5 - scale * (out + 0.5)) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights * ((place >= 0) & (place < extent))
    return weights / weights.sum(-1, keepdim=True)


def _photometric(pixels: Float[Tensor, "N 3 S S"], chains: Sequence[Photometric]) -> UInt8[Tensor, "N 3 S S"]:
    """Run each view's chain; the k-th colour operations of all views run together."""
    device = pixels.device
    for stage in range(max(len(chain.jitter) for chain in chains)):
        steps = [chain.jitter[stage] if stage < len(chain.jitter) else ("", 1.0) for chain in chains]
        pixels = _affine(pixels, steps)
        pixels = _on_rows(pixels, [(i, value) for i, (name, value) in enumerate(steps) if name == "hue"], turn_hue)
    is_grey = _column([chain.is_grey for chain in chains], device)
    pixels = torch.where(is_grey > 0, _grey(pixels), pixels)
    sigmas = [(i, chain.blur_sigma) for i, chain in enumerate(chains) if chain.blur_sigma > 0]
    levels = _levels(_on_rows(pixels, sigmas, _blur))
    is_solarized = _column([chain.is_solarized for chain in chains], device)
    return torch.where((is_solarized > 0) & (levels >= 128), 255 - levels, levels).to(torch.uint8)


def _affine(pixels: Tensor, steps: Sequence[tuple[str, float]]) -> Tensor:
    """Brightness, contrast and saturation: factor * level + (1 - factor) * (nothing, or mean grey, or grey)."""
    names = [name for name, _ in steps]
    factor = [1.0 if name in ("", "hue") else value for name, value in steps]
    grey = _grey(pixels)
    towards = _column([n == "saturation" for n in names], pixels.device) * grey
    towards = towards + _column([n == "contrast" for n in names], pixels.device) * grey.mean((-2, -1), keepdim=True)
    factors = _column(factor, pixels.device)
    return (factors * pixels + (1 - factors) * towards).clamp(0, 255)


def turn_hue(pixels: Float[Tensor, "N 3 S S"], turns: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N 3 S S"]:
    """Turn the hue of HSV; `integer_chain` explains the formula."""
    thirds = (3 * turns).round()
    source = (torch.arange(3, device=pixels.device)[:, None, None] - thirds).remainder(3).long()
    pixels = pixels.gather(1, source.expand_as(pixels))
    least, most = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    middle = pixels.sum(1, keepdim=True) - least - most
    sign = torch.where(pixels.roll(-1, 1) >= pixels.roll(-2, 1), 1.0, -1.0)  # red: green >= blue
    moved = 2 * pixels - middle - sign * ((6 * turns - 2 * thirds) * (most - least))
    return torch.minimum(torch.maximum(moved, least), most)


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Products with a banded matrix per view and axis, which hold the reflected borders."""
    side = pixels.shape[-1]
    place = torch.arange(side, device=pixels.device, dtype=torch.float32)
    sigma = sigmas.view(-1, 1, 1)
    radius = (3 * sigma).ceil().clamp(max=side - 1)  # a reflection reaches at most to the far border

    def weight(distance: Tensor) -> Tensor:
        return torch.where(distance <= radius, torch.exp(-0.5 * (distance / sigma) ** 2), 0.0)

    out, source = place[:, None], place
    matrix = weight((out - source).abs())
    matrix = matrix + weight(out + source) * (source > 0) + weight(2 * (side - 1) - out - source) * (source < side - 1)
    matrix = (matrix / matrix.sum(-1, keepdim=True))[:, None]
    return matrix @ (pixels @ matrix.transpose(-2, -1))


def _on_rows(pixels: Tensor, rows: Sequence[tuple[int, float]], change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Change some of the views, each with its number."""
    if not rows:
        return pixels
    index = torch.tensor([row for row, _ in rows]).to(pixels.device, non_blocking=True)
    return pixels.index_copy(0, index, change(pixels[index], _column([value for _, value in rows], pixels.device)))


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _column(values: Sequence[float | bool], device: torch.device) -> Tensor:
    """[N, 1, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True).view(-1, 1, 1, 1)


def _levels(pixels: Tensor) -> Tensor:
    """Whole levels 0 .. 255, a half rounded up."""
    return (pixels + 0.5).floor().clamp(0, 255)
