# SPDX-License-Identifier: Apache-2.0
"""Pictures of one image's patch tokens: clusters, principal components, and what is like a chosen place.

Each is a PNG of the image's size, and an NPZ of the numbers beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike, NDArray

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed
from rekindle.drawing.pictures import PALETTE, Array, enlarged, write_arrays, write_picture
from rekindle.drawing.principal import Stretch, principal_colours


@dataclass(frozen=True)
class TokenClusters:
    """Clusters of one image's patches, the largest first.

    Attributes:
        labels: [gh, gw], number of the cluster of each patch.
        centres: [k, D], of tokens of unit length.

    """

    labels: NDArray[np.int64]
    centres: Array


def cluster_tokens(tokens: ArrayLike, *, num_clusters: int = 3, restarts: int = 10, seed: int = 0) -> TokenClusters:
    """Cluster patch tokens [gh, gw, D] by k-means on unit length (k-means++ starts, the best of `restarts`).

    The order of the tokens does not matter: they are sorted (by their bytes) before anything is drawn. Of clusters of one size
    the one with the lower first coordinate comes first. Fewer different tokens than clusters leave the last ones empty.
    """
    from sklearn.cluster import KMeans  # slow to load, and only clusters need it
    from sklearn.exceptions import ConvergenceWarning

    grid = np.asarray(tokens, dtype=np.float64)
    rows = grid.reshape(-1, grid.shape[-1])
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows = np.ascontiguousarray(rows) + 0.0  # no negative zeros: equal tokens have equal bytes
    order = np.argsort(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0], kind="stable")
    fit = KMeans(num_clusters, n_init=restarts, random_state=derived_seed(seed, "clusters") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different tokens than clusters
        sorted_labels = fit.fit_predict(rows[order])
    labels = np.empty(len(rows), np.int64)
    labels[order] = sorted_labels
    areas = np.bincount(labels, minlength=num_clusters)
    centres = np.asarray(fit.cluster_centers_, np.float64)
    largest_first = np.lexsort((*centres.T[::-1], -areas))
    place = np.empty(num_clusters, np.int64)
    place[largest_first] = np.arange(num_clusters)
    return TokenClusters(place[labels].reshape(grid.shape[:2]), centres[largest_first])


def write_clusters(path: Path, clusters: TokenClusters, size: tuple[int, int]) -> None:
    """Write the map of clusters as a PNG of `size` (height, width), and labels and centres as an NPZ of the same stem.

    Colours belong to the rank by area; after seven they repeat, darker.
    """
    wheel = np.array([to_rgb(PALETTE[i % len(PALETTE)]) for i in range(len(clusters.centres))])
    darker = 0.6 ** (np.arange(len(wheel)) // len(PALETTE))
    colours = (wheel * darker[:, None])[clusters.labels]
    write_picture(path, enlarged(colours[None], size)[0])
    write_arrays(path.with_suffix(".npz"), labels=clusters.labels, centres=clusters.centres)


def write_principal(
    folder: Path,
    tokens: Mapping[str, ArrayLike],
    sizes: Mapping[str, tuple[int, int]],
    *,
    stretch: Stretch = "percentile",
    foreground: float | None = None,
    is_below: bool = False,
) -> None:
    """Write <name>.png of each image's principal components, fitted to all together, and components.npz of the projection.

    Args:
        folder: of the files.
        tokens: [gh, gw, D] of each image, by name.
        sizes: (height, width) of each picture.
        stretch, foreground, is_below: see `principal_colours`.

    """
    found = principal_colours(list(tokens.values()), stretch=stretch, foreground=foreground, is_below=is_below)
    for name, colours in zip(tokens, found.colours, strict=True):
        write_picture(folder / f"{name}.png", enlarged(colours[None], sizes[name])[0])
    write_arrays(folder / "components.npz", mean=found.mean, components=found.components, ratios=found.ratios)


def cosines_to(tokens: ArrayLike, place: tuple[float, float]) -> Array:
    """Return the cosine [gh, gw] of every patch with that at a place.

    Args:
        tokens: [gh, gw, D].
        place: (y, x) as shares of height and width, in [0, 1).

    Raises: RequestError for a place outside the image.
    """
    if not all(0 <= share < 1 for share in place):
        raise RequestError(
            f"the prompt (y, x) = {place} lies outside the image; give shares of its height and width, from 0 up to but not 1"
        )
    grid = np.asarray(tokens, dtype=np.float64)
    unit = grid / np.maximum(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-12)
    chosen = unit[int(place[0] * grid.shape[0]), int(place[1] * grid.shape[1])]
    return np.asarray(unit @ chosen)
