# SPDX-License-Identifier: Apache-2.0
"""Our GLARE step with one measure switched off, each a side of a bench; scripts/bench_measures.py times them.

A side changes its own process only. All compute the same loss, as far as rounding goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.bench.step import OursGlare
from rekindle.engine import step as engine_step
from rekindle.methods import dino, glare
from rekindle.methods.base import LossBreakdown
from rekindle.methods.shared import distillation
from rekindle.networks.backbone import Backbone
from rekindle.objectives.prototypes import Compared


class AllWeights(OursGlare):
    """Every weight trains, and the teacher is a whole copy."""

    def __init__(self, case: Mapping[str, object]) -> None:
        super().__init__({**case, "train": "all"})


class WholeLastBlock(OursGlare):
    """The last block of small crops computes every token, of which only the class token is read."""

    def __init__(self, case: Mapping[str, object]) -> None:
        Backbone.class_token = lambda self, pixels: self(pixels).class_token  # type: ignore[method-assign]
        super().__init__(case)


class OneGraph(OursGlare):
    """The small crops' graph waits for that of the large views."""

    def __init__(self, case: Mapping[str, object]) -> None:
        glare.gradient_in_advance = dino.gradient_in_advance = one_graph  # type: ignore[attr-defined]
        super().__init__(case)


class KeptLogits(OursGlare):
    """Logits and distributions of all rows are tensors of the graph."""

    def __init__(self, case: Mapping[str, object]) -> None:
        distillation.prototype_cross_entropy = kept_logits  # type: ignore[assignment, attr-defined]
        super().__init__(case)


class FusedAttention(OursGlare):
    """torch's fused attention, also in bfloat16 on a CPU."""

    def __init__(self, case: Mapping[str, object]) -> None:
        Backbone.attend_plainly = lambda self: None  # type: ignore[method-assign]
        super().__init__(case)


class Autocast(OursGlare):
    """Autocast instead of bfloat16 copies: the stream and the norms are float32."""

    def __init__(self, case: Mapping[str, object]) -> None:
        class Cast:
            standing: tuple[Tensor, ...] = ()

            def __init__(self, method: Any, dtype: torch.dtype) -> None: ...

            def call(self, method: Any, batch: Any, progress: Any) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return method(batch, progress)

        engine_step.ComputeCopies = Cast  # type: ignore[assignment, attr-defined]
        super().__init__(case)


def one_graph(parts: Sequence[Callable[[], LossBreakdown]], inputs: Sequence[Tensor]) -> LossBreakdown:
    """What `gradient_in_advance` gives, with the activations of all parts alive together."""
    return LossBreakdown.join([part() for part in parts])


def kept_logits(
    student: Tensor, prototypes: Tensor, compared: Sequence[Compared], *, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `prototype_cross_entropy` gives, with logits and distributions of all rows in the graph."""
    parts = []
    for own, part in zip(torch.split(student, [len(part.tokens) for part in compared]), compared, strict=True):
        log_p = F.log_softmax((own @ prototypes.to(own.dtype).T).float() / temperature, dim=-1)
        probs = part.targets.probs()
        values = {
            name: -(pairs.weight * (probs[pairs.teacher] * log_p[pairs.student]).sum(-1)).sum()
            for name, pairs in part.terms.items()
        }
        total = torch.stack([part.weights[name] * value for name, value in values.items()]).sum()
        parts.append(LossBreakdown(total, values))
    joined = LossBreakdown.join(parts)
    return joined.total, joined.terms
