# SPDX-License-Identifier: Apache-2.0
"""Principal components of patch tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Stretch = Literal["percentile", "range"]
PERCENTILES: dict[Stretch, tuple[float, float]] = {"percentile": (1.0, 99.0), "range": (0.0, 100.0)}


@dataclass(frozen=True)
class PrincipalColours:
    """Colours of groups of tokens, and the projection that gave them.

    Attributes:
        colours: one array [..., 3] in [0, 1] per group; black where a token is not foreground.
        mean: [D], of the tokens that were fitted.
        components: [3, D], unit length, the largest loading of each positive; zeros where D is less.
        ratios: [3], share of the variance along each; zeros where nothing varies.
        foreground: one array [...] of booleans per group; all True without a threshold.

    """

    colours: list[Array]
    mean: Array
    components: Array
    ratios: Array
    foreground: list[NDArray[np.bool_]]


def principal_colours(
    tokens: Sequence[ArrayLike],
    *,
    stretch: Stretch = "percentile",
    foreground: float | None = None,
    is_below: bool = False,
) -> PrincipalColours:
    """Turn patch tokens into colours: the first three principal components of all groups together.

    Equal tokens get equal colours in every group. With a threshold, the first component says what is foreground, and a second
    analysis of the foreground alone gives the colours (the two steps of DINOv2's pictures).

    Args:
        tokens: groups [..., D] of one feature space, for example [images, gh, gw, D] of two models.
        stretch: what becomes 0 and 1 of each component: the 1st and 99th percentile, or the least and the greatest.
        foreground: share of the first component's stretched range above which a token is foreground; None for no such step.
        is_below: foreground lies below the threshold; the direction of a component means nothing.

    Returns: 0.5 for a component that does not vary.

    Raises: ValueError for a threshold that leaves no foreground.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in tokens]
    rows = np.concatenate([group.reshape(-1, group.shape[-1]) for group in groups])
    kept = np.ones(len(rows), dtype=np.bool_)
    if foreground is not None:
        leading = principal_components(rows, count=1)
        first = _stretched(rows, leading, stretch)[:, 0]
        kept = first < foreground if is_below else first > foreground
        if not kept.any():
            raise ValueError(
                f"no token is {'below' if is_below else 'above'} {foreground:g}; choose 0 < foreground < 1"
            )
    chosen = rows[kept]
    mean, components = chosen.mean(axis=0), principal_components(chosen, count=3)
    found = np.zeros((len(rows), 3))
    found[kept] = _stretched(chosen, components, stretch)
    cuts = np.cumsum([group[..., 0].size for group in groups])[:-1]
    return PrincipalColours(
        [part.reshape(*g.shape[:-1], 3) for part, g in zip(np.split(found, cuts), groups, strict=True)],
        mean,
        components,
        _ratios(chosen, components),
        [part.reshape(g.shape[:-1]) for part, g in zip(np.split(kept, cuts), groups, strict=True)],
    )


def principal_components(rows: ArrayLike, *, count: int) -> Array:
    """Return the first principal directions [count, D] of rows [n, D]; zeros where D is less than `count`."""
    values = np.asarray(rows, dtype=np.float64)
    centred = values - values.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = vectors[:, ::-1].T[:count]
    signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])
    components = np.zeros((count, values.shape[1]))
    components[: len(found)] = found * signs[:, None]
    return components


def _stretched(rows: Array, components: Array, stretch: Stretch) -> Array:
    """Coordinates [n, count] of rows along the components, stretched to [0, 1]; 0.5 where they do not vary."""
    projected = (rows - rows.mean(axis=0)) @ components.T
    low, high = np.percentile(projected, PERCENTILES[stretch], axis=0)
    spread = high - low
    varies = spread > 1e-9 * max(1.0, float(np.abs(rows).max()))
    return np.asarray(np.where(varies, (projected - low) / np.where(varies, spread, 1.0), 0.5).clip(0.0, 1.0))


def _ratios(rows: Array, components: Array) -> Array:
    centred = rows - rows.mean(axis=0)
    total, noise = float(np.square(centred).sum()), 1e-24 * float(np.square(rows).sum())
    along = np.square(centred @ components.T).sum(axis=0)
    return np.asarray(along / total if total > noise else np.zeros(len(components)))
