# SPDX-License-Identifier: Apache-2.0
"""Semantic attention of a base model as a target: which rows, what distribution, what loss (TEC, arXiv:2210.11016)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rekindle.core.precision import full_precision


@full_precision
def strongest_patches(class_row: Float[Tensor, "N H P"], k: int) -> Int64[Tensor, "N k"]:
    """Return the k patches that the class token attends to most, on average over the heads, strongest first.

    Args: class_row, its logits or probabilities over the patches. Raises: ValueError unless 0 <= k <= P.
    """
    if not 0 <= k <= class_row.shape[-1]:
        raise ValueError(f"k = {k} patches of {class_row.shape[-1]} cannot be selected")
    return class_row.mean(dim=1).topk(k, dim=-1).indices


@full_precision
def attention_target(logits: Float[Tensor, "N R H P"], temperature: float) -> Float[Tensor, "N R H P"]:
    """Return softmax(logits / tau) over the patches; tau > 1 flattens it. Raises: ValueError unless tau > 0."""
    if temperature <= 0:
        raise ValueError(f"temperature = {temperature} must be positive")
    return (logits / temperature).softmax(dim=-1)


@full_precision
def attention_loss(logits: Float[Tensor, "N R H P"], target: Float[Tensor, "N R H P"]) -> Float[Tensor, ""]:
    """Cross-entropy of target to predicted rows, in nats, mean over images, rows and heads (TEC, eq. 5).

    Args: logits, predicted, without temperature; target, distributions over the last axis.
    """
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


@full_precision
def mean_entropy(target: Float[Tensor, "N R H P"]) -> Float[Tensor, ""]:
    """Mean entropy of the rows, in nats: what `attention_loss` cannot fall below."""
    entropy: Tensor = torch.special.entr(target).sum(dim=-1).mean()
    return entropy
