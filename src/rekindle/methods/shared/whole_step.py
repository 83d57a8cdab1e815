# SPDX-License-Identifier: Apache-2.0
"""Gradient caching: losses that compare the images of a whole step, computed a micro-batch at a time.

What is compared (class tokens, sums over rows) is small; what it comes from (the encoder's activations) is not. So a step encodes
its micro-batches without a graph, compares all of them, keeps the gradient with respect to what was encoded, and encodes
each micro-batch once more to take that gradient back to the weights (Gao et al., arXiv:2101.06983). The result is the gradient of
the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rekindle.core.distributed import world_size
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import part_draws
from rekindle.core.short_memory import is_out_of_memory
from rekindle.methods.base import LossBreakdown, MicroBatch
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.views.batch import ViewBatch

Value = TypeVar("Value")

Joined = Mapping[str, Tensor]
"""Tensors of which the second axis is images, [V, B, ...]: of one micro-batch, or of all of this process."""


@dataclass(frozen=True)
class Part:
    """A micro-batch before any loss.

    Attributes:
        batch: its views, and progress.
        known: what teacher and geometry say of it, without a graph.
    """

    batch: ViewBatch
    progress: Progress
    known: Joined


@dataclass(frozen=True)
class Stage:
    """Some terms of a loss, which need nothing of the others.

    Attributes:
        name: of the stage.
        encode: what is compared of one micro-batch, with a graph.
        compare: the terms, from what was encoded, and what was known, of all micro-batches.
    """

    name: str
    encode: Callable[[Part], Joined]
    compare: Callable[[Joined, Joined], LossBreakdown]

    def encoded(self, part: Part) -> Joined:
        """What `encode` gives, with the same random draws each time."""
        with part_draws(part.progress, len(part.batch), self.name):
            return self.encode(part)


def check_images(method: str, micro_batches: Sequence[MicroBatch]) -> None:
    """Raise RequestError for a step of a single image, which has nothing to be told from."""
    if sum(len(batch) for batch, _ in micro_batches) * world_size() < 2:
        raise RequestError(
            f"{method} compares the images of a step with each other and needs at least two; raise --batch-size, or give more "
            "images"
        )


def by_slot(parts: Sequence[Part], values: Sequence[Value]) -> dict[int, Value]:
    """A value of each micro-batch, by its slot in the step, for what is too large to be joined."""
    return {part.progress.slot: value for part, value in zip(parts, values, strict=True)}


def joined(parts: Sequence[Joined]) -> Joined:
    """The tensors of all micro-batches, along the axis of their images."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def compared_in_parts(
    parts: Sequence[Part], stages: Sequence[Stage], trained: Sequence[Tensor]
) -> Iterator[Callable[[], LossBreakdown]]:
    """Yield what `Method.parts` does for a loss that is the sum of `stages`. Each part returns the loss of the whole step.

    Args: parts, the micro-batches of this process; trained, everything that trains.
    Raises: RekindleError where memory runs out in `compare`, which smaller micro-batches do not help.
    """
    if len(parts) == 1:
        yield partial(_at_once, parts[0], stages, trained)
        return
    known = joined([part.known for part in parts])
    found = [_compared(stage, parts, known, trained) for stage in stages]
    first = 0
    for part in parts:
        images = slice(first, first + len(part.batch))
        yield partial(_gone_back, part, images, len(parts), found, trained)
        first = images.stop


def _at_once(part: Part, stages: Sequence[Stage], trained: Sequence[Tensor]) -> LossBreakdown:
    """All stages of the only part; those before the last one with their gradient in advance."""
    stats: dict[str, Tensor] = {}

    def whole(stage: Stage) -> LossBreakdown:
        found = stage.compare(stage.encoded(part), part.known)
        stats.update(found.stats)
        return found

    *early, last = stages
    found = [gradient_in_advance([partial(whole, stage) for stage in early], trained)] if early else []
    return LossBreakdown.join([*found, whole(last)], stats)


@dataclass(frozen=True)
class _Compared:
    """A stage after its comparison: the loss, and its gradient with respect to what was encoded and to what trains."""

    stage: Stage
    loss: LossBreakdown
    encoded: dict[str, Tensor]
    trained: dict[int, Tensor]


def _compared(stage: Stage, parts: Sequence[Part], known: Joined, trained: Sequence[Tensor]) -> _Compared:
    with torch.no_grad():
        together = joined([stage.encoded(part) for part in parts])
    wanted = {name: t.requires_grad_() for name, t in together.items() if t.is_floating_point()}
    try:
        loss = stage.compare(together, known)
        inputs = [*wanted.values(), *trained]
        gradients: Sequence[Tensor | None] = [None] * len(inputs)
        if loss.total.requires_grad:
            gradients = torch.autograd.grad(loss.total, inputs, allow_unused=True)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        images = sum(len(part.batch) for part in parts)
        raise RekindleError(
            f"memory ran out where the {images} images of a step are compared with each other ({stage.name}), which smaller "
            "micro-batches do not help: their heads and logits exist for all images at once. Use a smaller --batch-size, "
            f"narrower heads or more --devices, in a new run ({error})"
        ) from error
    of_encoded, of_trained = gradients[: len(wanted)], gradients[len(wanted) :]
    detached = LossBreakdown(loss.total.detach(), loss.terms, loss.stats)
    return _Compared(
        stage,
        detached,
        {name: g for name, g in zip(wanted, of_encoded, strict=True) if g is not None},
        {place: g for place, g in enumerate(of_trained) if g is not None},
    )


def _gone_back(
    part: Part, images: slice, number: int, found: Sequence[_Compared], trained: Sequence[Tensor]
) -> LossBreakdown:
    """The step's loss, whose gradient is one part's: that of its images times `number`, and that of the comparison."""
    sums: dict[int, Tensor] = {}
    for compared in found:
        new: dict[int, Tensor] = dict(compared.trained)
        if torch.is_grad_enabled():
            encoded = compared.stage.encoded(part)
            pulls = {
                name: gradient[:, images].to(encoded[name].dtype) * number
                for name, gradient in compared.encoded.items()
                if encoded[name].requires_grad
            }
            own = torch.autograd.grad(
                [encoded[name] for name in pulls], trained, list(pulls.values()), allow_unused=True
            )
            for place, gradient in enumerate(own):
                if gradient is not None:
                    new[place] = new[place] + gradient if place in new else gradient
        for place, gradient in new.items():
            sums[place] = sums[place] + gradient if place in sums else gradient
    stats = {name: value for compared in found for name, value in compared.loss.stats.items()}
    loss = LossBreakdown.join([compared.loss for compared in found], stats)
    total: Tensor = _Known.apply(loss.total, sums, *trained)
    return LossBreakdown(total, loss.terms, loss.stats)


class _Known(torch.autograd.Function):
    """A value whose gradient is there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: dict[int, Tensor], *trained: Tensor) -> Tensor:
        ctx.places, ctx.number = list(gradients), len(trained)
        ctx.save_for_backward(*gradients.values())
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = {place: own * gradient.to(own.dtype) for place, own in zip(ctx.places, ctx.saved_tensors, strict=True)}
        return None, None, *(scaled.get(place) for place in range(ctx.number))
