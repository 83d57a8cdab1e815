# SPDX-License-Identifier: Apache-2.0
"""Segmentation from prompted patches, without training (MMC, table 1, for one prompt).

One added place: the score of a patch is its cosine with the patch there, and the mask is where that exceeds a threshold.

Several (own choice, the paper has one): a patch belongs to the added or subtracted place that it is most like. If that is an
added one, the score is this cosine; if not, it is minus the cosine, at most that with the added ones. So adding a place never
takes a patch out of a mask, subtracting never puts one in, and a threshold keeps its meaning, which a difference of cosines
would not: other places are alike to some degree everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from rekindle.core.errors import RequestError
from rekindle.drawing.pictures import Bytes, overlay
from rekindle.drawing.token_pictures import cosines_to
from rekindle.measuring.looking import Look, Place
from rekindle.prompting.options import Edges

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]
Size = tuple[int, int]
LIGHT, DARK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Prompt:
    """A pixel that was chosen: row and column in the upright image, from 0 at the top left; to look for, or to leave out."""

    row: int
    column: int
    is_added: bool = True


def place_of(prompt: Prompt, size: Size, grid: Size) -> Place:
    """Return the centre of the patch that holds a pixel, as shares of height and width.

    Args:
        prompt: the pixel.
        size: height and width of the image that it is counted in.
        grid: rows and columns of patches.

    Raises: RequestError for a pixel outside the image.
    """
    if not (0 <= prompt.row < size[0] and 0 <= prompt.column < size[1]):
        raise RequestError(
            f"row {prompt.row}, column {prompt.column} lies outside the image; it has rows 0 to {size[0] - 1} "
            f"and columns 0 to {size[1] - 1}"
        )
    y, x = prompt.row * grid[0] // size[0], prompt.column * grid[1] // size[1]  # the patch that a mask paints it with
    return (y + 0.5) / grid[0], (x + 0.5) / grid[1]


def score_patches(seen: Look, prompts: Sequence[Prompt], size: Size) -> Scores:
    """Return the score [gh, gw] of every patch, in [-1, 1]; see the module.

    Args:
        seen: the image through a model.
        prompts: at least one that is added.
        size: height and width of the image in which the prompts are counted.

    Raises: RequestError for a place outside the image, or none to look for.
    """
    grid = (seen.patches.shape[0], seen.patches.shape[1])
    maps = [(p.is_added, cosines_to(seen.patches, place_of(p, size, grid))) for p in prompts]
    added = [cosines for is_added, cosines in maps if is_added]
    subtracted = [cosines for is_added, cosines in maps if not is_added]
    if not added:
        raise RequestError("no place to look for; add one before places to leave out")
    wanted = np.max(added, axis=0)
    if not subtracted:
        return np.asarray(wanted)
    unwanted = np.max(subtracted, axis=0)
    return np.asarray(np.where(wanted > unwanted, wanted, np.minimum(wanted, -unwanted)))


def mask_of(scores: Scores, size: Size, threshold: float, edges: Edges = "patches") -> Mask:
    """Return where an image of `size` (height, width) scores above a threshold.

    Args:
        scores: [gh, gw].
        size: of the mask.
        threshold: in [0, 1); below 0 what was subtracted would count.
        edges: of the patches as they are, or of the scores interpolated bilinearly between the centres of the patches.

    """
    if edges == "patches":
        rows, columns = (np.arange(n) * g // n for n, g in zip(size, scores.shape, strict=True))
        return np.asarray((scores > threshold)[rows[:, None], columns])
    values = torch.from_numpy(scores)[None, None]
    return torch.nn.functional.interpolate(values, size=size, mode="bilinear")[0, 0].numpy() > threshold


def score_picture(image: Bytes, scores: Scores) -> Bytes:
    """Return the scores over a grey image [H, W, 3], from 0 (dark) to 1 (pale)."""
    return np.asarray(overlay(image[None], scores[None], low=0.0, high=1.0)[0])


def contour_picture(image: Bytes, mask: Mask) -> Bytes:
    """Return an image [H, W, 3], dimmed outside the mask [H, W], with the mask's contour: white within black."""
    width = max(1, round(min(mask.shape) / 240))
    padded = np.pad(mask, 1, mode="edge")  # the frame of the image is no edge of the mask
    edge = (mask != ndimage.binary_erosion(padded, border_value=1)[1:-1, 1:-1]) if mask.any() else np.zeros_like(mask)
    found = np.where(mask[..., None], image, image // 2 + 24).astype(np.uint8)
    found[_thick(edge, 2 * width)] = DARK
    found[_thick(edge, width)] = LIGHT
    return found


def _thick(edge: Mask, reach: int) -> Mask:
    """What lies within `reach` pixels of an edge."""
    return np.asarray(ndimage.maximum_filter(edge, size=2 * reach - 1))
