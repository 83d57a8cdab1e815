# SPDX-License-Identifier: Apache-2.0
"""The straightforward step as a side of a bench; scripts/bench_straightforward.py times it against ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from rekindle.bench.stage import count_flops, fixed_views, taken
from rekindle.bench.step import EPOCHS, FIRST_STEP, STEPS_PER_EPOCH, build_stepper
from rekindle.core.progress import Progress
from rekindle.methods.dino import Dino
from rekindle.methods.glare import Glare
from tests.methods.straightforward import Straightforward


class _Straightforward:
    METHOD: ClassVar[str]

    def __init__(self, case: Mapping[str, object]) -> None:
        stepper, _, _ = build_stepper({**case, "precision": "fp32"}, self.METHOD)
        assert isinstance(stepper.method, Glare | Dino)
        self._slow = Straightforward(stepper.method)
        del stepper
        self._trained = [p for p in self._slow.method.student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, foreach=False)
        self._is_low = taken(case, "precision", str) == "bf16"
        self._batch = fixed_views(case)
        self._step = FIRST_STEP

    def run(self) -> int:
        progress = Progress(self._step, STEPS_PER_EPOCH * EPOCHS, STEPS_PER_EPOCH, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_low):
            terms = self._slow(self._batch, progress)
        total: torch.Tensor = torch.stack(list(terms.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        for parameter in self._trained:
            assert parameter.grad is not None
            parameter.grad.mul_((3.0 / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._slow.after_step(progress)
        self._step += 1
        return len(self._batch)

    def facts(self) -> dict[str, object]:
        return {"flops": count_flops(self.run)}


class StraightforwardGlare(_Straightforward):
    METHOD = "glare"


class StraightforwardDino(_Straightforward):
    METHOD = "dino"
