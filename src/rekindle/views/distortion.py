# SPDX-License-Identifier: Apache-2.0
"""Patch-level distortion of the student's global views: which patches, and what is done to their pixels.

GLARE (Ebouky et al.), local consistency; the ratio and the block shape are iBOT's (arXiv:2111.07832 and its
code). Draws are one row per image, so that a batch split over processes is distorted like the whole.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rekindle.core.precision import full_precision
from rekindle.core.progress import Progress
from rekindle.core.rng import row_normal, row_uniform
from rekindle.views.photometric import gaussian_weights

RatioMode = Literal["ibot", "fixed"]
MaskShape = Literal["random", "block"]
DistortionKind = Literal["blur", "rotate", "noise", "mask", "none"]
Scope = Literal["crop", "patch"]

_NOISE_STD = 0.5  # in normalised units
_BLOCK_TRIES = 10
_BLOCK_MIN_ASPECT = 0.3
_BLOCK_CHUNK = 32


def draw_patch_mask(
    progress: Progress,
    rows: int,
    views: int,
    grid: tuple[int, int],
    *,
    ratio_mode: RatioMode = "ibot",
    fixed_ratio: float = 0.3,
    shape: MaskShape = "random",
    purpose: str = "patch_mask",
) -> Bool[Tensor, "V B gh gw"]:
    """Draw which patches are distorted (True), for `rows` images of `views` views each.

    The ratio r is 0 with probability 0.5 and else uniform in [0.1, 0.5] (`ibot`), or always `fixed_ratio`.
    The shape `random` takes exactly floor(r * P) patches; `block` takes rectangles until no more fit, and
    never more patches.

    Returns: on the CPU. Raises: ValueError if fixed_ratio is outside [0, 1].
    """
    if not 0.0 <= fixed_ratio <= 1.0:
        raise ValueError(f"fixed_ratio is a share of the patches in [0, 1]; got {fixed_ratio}")
    gh, gw = grid
    if ratio_mode == "ibot":
        draw = row_uniform(f"{purpose}/ratio", progress, rows, views, 2).double()
        ratio = torch.where(draw[..., 0] < 0.5, 0.0, 0.1 + 0.4 * draw[..., 1])
    else:
        ratio = torch.full((rows, views), fixed_ratio, dtype=torch.float64)
    budget = (ratio * (gh * gw) + 1e-9).floor().long()  # 0.29 * 100 is a hair below 29
    if shape == "random":
        draw = row_uniform(f"{purpose}/cells", progress, rows, views, gh * gw)
        rank = draw.argsort(dim=-1).argsort(dim=-1)
        mask = (rank < budget[..., None]).view(rows, views, gh, gw)
    else:
        mask = _blocks(progress, budget, grid, purpose)
    by_view: Tensor = mask.transpose(0, 1).contiguous()
    return by_view


def distort(
    pixels: Float[Tensor, "N 3 H W"],
    mask: Bool[Tensor, "N gh gw"],
    patch_size: int,
    *,
    kind: DistortionKind,
    sigma: float = 5.0,
    scope: Scope = "crop",
    progress: Progress | None = None,
    num_views: int = 1,
    purpose: str = "distort",
) -> Float[Tensor, "N 3 H W"]:
    """Distort the pixels of masked patches; all other pixels keep their bits, and the argument its values.

    `blur`: Gaussian of `sigma` pixels, cut at three sigma, reflected at the border of the view, so that
    neighbours leak into a patch (scope `crop`), or of each patch alone (scope `patch`). `rotate`: by 90, 180
    or 270 degrees. `noise`: add N(0, 0.5^2). `mask` and `none` leave pixels alone (the network replaces the
    embedding, or nothing).

    Args: pixels normalised, N = num_views * B with views first; progress, needed by `rotate` and `noise`.
    Raises: ValueError for sigma <= 0, a grid that does not fit the view, or a random kind without progress.
    """
    n, _, height, width = pixels.shape
    if mask.shape[1] * patch_size != height or mask.shape[2] * patch_size != width:
        raise ValueError(
            f"a grid of {tuple(mask.shape[1:])} patches of {patch_size} px does not cover a view of "
            f"{height} x {width} px"
        )
    if kind in ("mask", "none"):
        return pixels
    if kind == "blur" and sigma <= 0:
        raise ValueError(f"the blur needs sigma > 0 pixels; got {sigma}. For no distortion use kind='none'")
    if kind in ("rotate", "noise") and progress is None:
        raise ValueError(f"kind='{kind}' draws random numbers and needs `progress`")
    if n % num_views:
        raise ValueError(f"{n} views are not a multiple of num_views={num_views}")

    if kind == "noise":
        assert progress is not None
        noise = row_normal(purpose, progress, n // num_views, num_views, 3, height, width)
        noise = noise.transpose(0, 1).flatten(0, 1).to(pixels)
        return torch.where(_on_pixels(mask.to(pixels.device), patch_size), pixels + _NOISE_STD * noise, pixels)
    if kind == "rotate":
        assert progress is not None
        draw = row_uniform(purpose, progress, n // num_views, num_views, *mask.shape[1:])
        turns = (1 + (3 * draw).floor()).transpose(0, 1).flatten(0, 1).to(pixels.device)
        return _rotate(pixels, turns * mask.to(pixels.device), patch_size)

    if mask.is_cuda:  # to ask which views have masked patches would make the host wait for the device
        return torch.where(_on_pixels(mask, patch_size), _blur(pixels, sigma, scope, patch_size), pixels)
    hit = mask.flatten(1).any(dim=1).nonzero()[:, 0]
    if len(hit) == 0:
        return pixels
    some = pixels[hit]
    blurred = torch.where(
        _on_pixels(mask[hit], patch_size).to(pixels.device), _blur(some, sigma, scope, patch_size), some
    )
    return pixels.index_copy(0, hit.to(pixels.device), blurred)


def _blocks(progress: Progress, budget: Tensor, grid: tuple[int, int], purpose: str) -> Tensor:
    """Rectangles of area up to what remains and aspect log-uniform in [0.3, 1 / 0.3], for all views at once.

    Each view stops when its budget is spent or ten attempts in a row added nothing, as iBOT's sampler does.
    """
    rows, views = budget.shape
    gh, gw = grid
    least_area = float((min(grid) // 3) ** 2)
    y, x = torch.arange(gh)[:, None], torch.arange(gw)
    mask = torch.zeros(rows, views, gh, gw, dtype=torch.bool)
    remaining, failures = budget.clone(), torch.zeros_like(budget)
    attempt = 0
    draws: tuple[Tensor, ...] = ()
    while (active := (remaining > 0) & (failures < _BLOCK_TRIES)).any():
        if attempt % _BLOCK_CHUNK == 0:
            chunk = f"{purpose}/block{attempt // _BLOCK_CHUNK}"
            draws = row_uniform(chunk, progress, rows, views, _BLOCK_CHUNK, 4).unbind(dim=2)
        u_area, u_aspect, u_top, u_left = draws[attempt % _BLOCK_CHUNK].unbind(dim=-1)
        area = least_area + u_area * (remaining - least_area)
        aspect = torch.exp((2 * u_aspect - 1) * math.log(1 / _BLOCK_MIN_ASPECT))
        height, width = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        top = (u_top * (gh - height + 1)).long()[..., None, None]
        left = (u_left * (gw - width + 1)).long()[..., None, None]
        block = (y >= top) & (y < top + height[..., None, None]) & (x >= left) & (x < left + width[..., None, None])
        added = (block & ~mask).sum(dim=(-2, -1))
        accepted = active & (height < gh) & (width < gw) & (added >= 1) & (added <= remaining)
        mask |= block & accepted[..., None, None]
        remaining = torch.where(accepted, remaining - added, remaining)
        failures = torch.where(accepted, 0, failures + 1)
        attempt += 1
    return mask


def _on_pixels(mask: Tensor, patch_size: int) -> Tensor:
    """[N, gh, gw] -> [N, 1, H, W]."""
    return mask.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)[:, None]


def _blur(pixels: Tensor, sigma: float, scope: Scope, patch_size: int) -> Tensor:
    """Blur whole views, or each patch with its own border."""
    if scope == "crop":
        return _blur_planes(pixels, sigma).to(pixels.dtype)
    return _joined(_blur_planes(_as_patches(pixels, patch_size), sigma).to(pixels.dtype))


@full_precision
def _blur_planes(planes: Tensor, sigma: float) -> Tensor:
    """[..., H, W]: products with two banded matrices that hold the reflected borders; no padding, no loop."""
    rows = _blur_matrix(planes.shape[-2], sigma).to(planes)
    columns = _blur_matrix(planes.shape[-1], sigma).to(planes)
    return rows @ (planes @ columns.T)


def _blur_matrix(size: int, sigma: float) -> Tensor:
    """[size, size]: row i holds the weights of every pixel in blurred pixel i; rows sum to 1."""
    radius = min(math.ceil(3 * sigma), size - 1)  # a reflection reaches at most to the far border
    source = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).abs()
    source = torch.where(source > size - 1, 2 * (size - 1) - source, source)
    weights = torch.tensor(gaussian_weights(sigma, radius), dtype=torch.float64)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, weights.expand(size, -1).contiguous())


def _rotate(pixels: Tensor, turns: Tensor, patch_size: int) -> Tensor:
    """Turn each patch counter-clockwise by `turns` [N, gh, gw] quarters."""
    patches = _as_patches(pixels, patch_size)
    turned = patches
    for quarters in (1, 2, 3):
        chosen = (turns == quarters)[:, None, :, :, None, None]
        turned = torch.where(chosen, torch.rot90(patches, quarters, (4, 5)), turned)
    return _joined(turned)


def _as_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """[N, 3, H, W] -> [N, 3, gh, gw, patch_size, patch_size]."""
    n, channels, height, width = pixels.shape
    grid = (height // patch_size, width // patch_size)
    return pixels.reshape(n, channels, grid[0], patch_size, grid[1], patch_size).transpose(3, 4)


def _joined(patches: Tensor) -> Tensor:
    """Undo `_as_patches`."""
    return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)
