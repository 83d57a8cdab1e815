# SPDX-License-Identifier: Apache-2.0
"""Health figures of features, without labels: rank, spread, and how far they have moved from the base.

None of these says that a model is better. They say when it collapses: a rank that falls, attention that is everywhere alike,
features that all are near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.linear_cka import linear_cka

PATCHES_PER_IMAGE = 32
EPS = 1e-7
WITHIN = 1e-4  # added to the diagonal of the scatter within objects (LiDAR, section 4)


def effective_rank(spectrum: Tensor) -> Tensor:
    """Return exp of the entropy of a non-negative spectrum, normalised to sum 1: between 1 and its length."""
    p = spectrum / spectrum.sum().clamp(min=EPS)
    return torch.exp(-torch.special.xlogy(p, p).sum())


def rank_me(features: Tensor) -> Tensor:
    """Return the smooth rank of features [n, D]: effective rank of their singular values (RankMe, arXiv:2210.02885, eq. 1)."""
    return effective_rank(torch.linalg.svdvals(features.double()))


def lidar(features: Tensor) -> Tensor:
    """Return the effective rank of the linear-discriminant matrix of features [n, q, D], q views of n objects.

    LiDAR (arXiv:2312.04000): the spectrum of W^(-1/2) B W^(-1/2), B the scatter of the objects' means, W that within objects.
    """
    rows = features.double()
    means = rows.mean(dim=1)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / max(1, len(means) - 1)
    inner = (rows - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / max(1, len(means) * (rows.shape[1] - 1))
    within = within + WITHIN * torch.eye(within.shape[0], dtype=within.dtype)
    values, vectors = torch.linalg.eigh(within)
    half = vectors * values.clamp(min=EPS).rsqrt() @ vectors.T
    return effective_rank(torch.linalg.eigvalsh(half @ between @ half).clamp(min=0))


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared distance of pairs of unit vectors [n, D] (Wang and Isola, arXiv:2005.10242, eq. 2)."""
    a, b = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
    return (a - b).square().sum(dim=-1).mean()


def uniformity(features: Tensor) -> Tensor:
    """Return log mean exp(-2 |x - y|^2) over pairs of different unit vectors [n, D]; lower is more spread (eq. 3)."""
    rows = functional.normalize(features, dim=-1)
    squared = torch.pdist(rows).square()
    spread: Tensor = torch.logsumexp(-2 * squared, dim=0) - torch.log(torch.tensor(float(max(1, len(squared)))))
    return spread


def gram_drift(patches: Tensor, before: Tensor) -> Tensor:
    """Return |G - G'| / |G'| (Frobenius), mean over images, of the cosines between the patches [n, P, D] of one image."""
    grams = [torch.einsum("npd,nqd->npq", x, x) for x in (functional.normalize(t, dim=-1) for t in (patches, before))]
    gap: Tensor = torch.linalg.matrix_norm(grams[0] - grams[1])
    drift: Tensor = (gap / torch.linalg.matrix_norm(grams[1]).clamp(min=EPS)).mean()
    return drift


def attention_spread(attention: Tensor) -> Tensor:
    """Return the entropy of the class token's attention [n, heads, P] over the patches, as a share of its greatest value."""
    p = attention / attention.sum(dim=-1, keepdim=True).clamp(min=EPS)
    entropy: Tensor = -torch.special.xlogy(p, p).sum(dim=-1)
    share: Tensor = (entropy / torch.log(torch.tensor(float(p.shape[-1])))).mean()
    return share


@dataclass(frozen=True)
class FeatureSample:
    """What a network makes of some views.

    Attributes:
        images: [n, q, D] class tokens of q views of n images, or means of the patches without such.
        patches: [n, P, D] of the first view.
        attention: [n, heads, P] of the class token in the last block, None without one.

    """

    images: Tensor
    patches: Tensor
    attention: Tensor | None


@torch.no_grad()
def sample_features(extractor: FeatureExtractor, views: Sequence[Tensor]) -> FeatureSample:
    """Pass q views [n, 3, S, S], bytes, through a network."""
    tokens = [extractor.attending(view) for view in views]
    images = [t.patches.mean(dim=(1, 2)) if t.cls is None else t.cls for t in tokens]
    first = tokens[0]
    attention = None if first.cls_attention is None else first.cls_attention.flatten(2).float().cpu()
    return FeatureSample(torch.stack(images, dim=1).cpu(), first.patches.flatten(1, 2).cpu(), attention)


def health(now: FeatureSample, before: FeatureSample | None = None) -> dict[str, float]:
    """Return the figures of some features; with those of the base, how far they have moved.

    Figures of patches are taken over up to 32 patches of each image, evenly spread; for LiDAR the images are the objects and
    their patches the views.
    """
    some = _some(now.patches)
    found = {
        "RankMe image (dimensions)": rank_me(now.images[:, 0]),
        "RankMe patch (dimensions)": rank_me(some.flatten(0, 1)),
        "alignment (distance²)": alignment(now.images[:, 0], now.images[:, 1]),
        "uniformity (log)": uniformity(now.images[:, 0]),
        "LiDAR image (dimensions)": lidar(now.images),
        "LiDAR patch (dimensions)": lidar(some),
    }
    if now.attention is not None:
        found["attention spread"] = attention_spread(now.attention)
    if before is not None:
        found["Gram drift"] = gram_drift(now.patches, before.patches)
        found["CKA to base"] = linear_cka(some.flatten(0, 1), _some(before.patches).flatten(0, 1))
    return {name: float(value) for name, value in found.items()}


def _some(patches: Tensor) -> Tensor:
    """Patches [n, m, D], evenly spread over each image."""
    count = min(PATCHES_PER_IMAGE, patches.shape[1])
    return patches[:, torch.linspace(0, patches.shape[1] - 1, count).round().long()]
