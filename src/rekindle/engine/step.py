# SPDX-License-Identifier: Apache-2.0
"""Optimizer step: micro-batches forward and backward, clip, move weights, teacher and centres."""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import nn

from rekindle.core.distributed import all_sum, rank, world_size
from rekindle.core.errors import RekindleError
from rekindle.core.progress import Progress
from rekindle.core.rng import part_draws
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.optimizer import build_optimizer, clip_gradients, set_schedule
from rekindle.engine.options import OptimOptions
from rekindle.engine.precision import ComputeCopies
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, ViewBatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule

Value = TypeVar("Value")


@dataclass(frozen=True)
class StepOutcome:
    """What is worth logging of a step.

    Attributes:
        values: loss, terms and stats, averaged over micro-batches and processes; and what the method says of the step as a whole.
        lr: learning rate of the step.
        weight_decay: of the step.
        grad_norm: norm over all gradients, before clipping.
    """

    values: dict[str, float]
    lr: float
    weight_decay: float
    grad_norm: float


class NotFinite(RekindleError):
    """A loss or gradient that is no finite number; nothing has moved. `images` are this process's, by position in the source."""

    def __init__(self, what: str, step: int, images: list[int]) -> None:
        super().__init__(f"{what} is not finite at step {step}; nothing has moved")
        self.images = images


@dataclass(frozen=True)
class FirstStep:
    """Who is told how long a step of several micro-batches will take.

    Attributes:
        first_look: takes the seconds of what comes before any loss, for all micro-batches, by the first one.
        first_part: takes the seconds up to the end of the first part, and those of the step by it.
    """

    first_look: Callable[[float], None]
    first_part: Callable[[float, float], None]


class _Sealed(Generic[Value]):
    """Carries frozen dataclasses through Fabric's wrapper, which would otherwise try to convert their fields."""

    def __init__(self, value: Value) -> None:
        self.value = value


class _Stepped(nn.Module):
    """The method as DDP sees it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, part: _Sealed[Callable[[], LossBreakdown]]) -> _Sealed[LossBreakdown]:
        """Compute one of the method's parts of a step."""
        return _Sealed(part.value())


class Stepper:
    """Trains a method step by step.

    Args: method, moved to fabric's device; precision, `bf16` computes in bfloat16 with float32 weights; head_steps, steps at the
    start in which the backbone stays still.
    """

    def __init__(
        self, method: Method, fabric: Fabric, optim: OptimOptions, *, precision: str, head_steps: int = 0
    ) -> None:
        self.method = method
        self._fabric, self._optim, self._head_steps = fabric, optim, head_steps
        self._waiting = method.backbone_parameters() if head_steps or optim.backbone_lr_factor != 1 else []
        optimizer = build_optimizer(method, optim, self._waiting)
        stepped = _Stepped(method)
        with warnings.catch_warnings():
            # Newer torch calls the switch forward_sync_buffers; ours must stay off under either name, because the sums that
            # a centre has observed belong to their process until the step ends.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self._module, self.optimizer = fabric.setup(stepped, optimizer)
        method.train()
        self._copies = ComputeCopies(method, torch.bfloat16) if precision == "bf16" else None
        self.trained = [p for p in method.parameters() if p.requires_grad]

    @property
    def standing(self) -> list[torch.Tensor]:
        """Tensors that are there whatever a step keeps: parameters, and low-precision copies of what is frozen."""
        copies = [] if self._copies is None else self._copies.standing
        return [*self.method.parameters(), *copies]

    def step(
        self,
        step: int,
        plan: TrainingPlan,
        next_micro_batch: Callable[[], ViewBatch],
        tell: FirstStep | None = None,
    ) -> StepOutcome:
        """Do one optimizer step.

        Args: step, how many were done before; next_micro_batch, gives this process's next micro-batch; tell, is told
        what the first of several micro-batches says of the step.
        Raises: NotFinite if loss or gradient is not; weights, teacher and centres have then not moved.
        """
        start = Progress(step, plan.steps, plan.steps_per_epoch, plan.seed, num_slots=plan.num_slots)
        lr, decay = set_schedule(self.optimizer, self._optim, start, plan.batch_size, self._head_steps)
        work = _Accumulation(self._module, self._fabric, self.method, step, plan, next_micro_batch, tell)
        if self._copies is None:
            work.run()
        else:
            self._copies.call(self.method, work.run)
        norm = float(clip_gradients(self.trained, self._optim.clip_norm, self._optim.clip_over))
        if not math.isfinite(norm):
            raise NotFinite("a gradient", step, [image for images in work.read for image in images])
        of_step = {name: float(value) for name, value in self.method.step_stats().items()}
        self.method.before_step(start)
        if step < self._head_steps:
            for parameter in self._waiting:
                parameter.grad = None  # AdamW then skips it, its averages included
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(start)
        return StepOutcome(work.values | of_step, lr, decay, norm)

    def abandon(self) -> None:
        """Forget a step that did not end: its gradients, and what centres have observed."""
        self.optimizer.zero_grad(set_to_none=True)
        self.method.abandon_step()
        if self._fabric.device.type == "cuda":
            torch.cuda.empty_cache()


class _Accumulation:
    """The parts of one step in this process, forward and backward.

    Attributes: values, of the loss, its terms and stats, averaged; read, the images of each micro-batch, in order.
    """

    def __init__(
        self,
        module: _FabricModule,
        fabric: Fabric,
        method: Method,
        step: int,
        plan: TrainingPlan,
        next_micro_batch: Callable[[], ViewBatch],
        tell: FirstStep | None,
    ) -> None:
        self._tell = tell
        self._module, self._fabric, self._method, self._next = module, fabric, method, next_micro_batch
        self._step, self._plan, self._number = step, plan, plan.num_slots // world_size()
        self._sizes: list[tuple[Progress, int]] = []
        self.values: dict[str, float] = defaultdict(float)
        self.read: list[list[int]] = []

    def _micro_batches(self) -> Iterator[MicroBatch]:
        plan = self._plan
        for micro in range(self._number):
            batch = self._next()
            slot = micro * world_size() + rank()
            progress = Progress(self._step, plan.steps, plan.steps_per_epoch, plan.seed, slot, plan.num_slots)
            self.read.append(batch.image_index.tolist())
            self._sizes.append((progress, len(batch)))
            began = time.perf_counter()
            yield batch, progress
            if micro == 0 and not self.values and self._tell is not None:  # all are looked at before the first loss
                self._tell.first_look((time.perf_counter() - began) * self._number)

    def run(self) -> None:
        """Compute them all; gradients add up to those of their mean."""
        done, began = 0, time.perf_counter()
        for part in self._method.parts(self._micro_batches()):
            known = time.perf_counter()
            with self._fabric.no_backward_sync(self._module, enabled=done < self._number - 1):
                with part_draws(*self._sizes[done]):
                    breakdown = self._module(_Sealed(part)).value
                scalars = _scalars(breakdown)
                if not math.isfinite(scalars["loss"]):
                    bad = [name for name in breakdown.terms if not math.isfinite(scalars[name])]
                    images = [image for images in self.read[done:] for image in images]
                    raise NotFinite(f"the loss (term {', '.join(bad or breakdown.terms)})", self._step, images)
                self._fabric.backward(breakdown.total / self._number)
            for name, value in scalars.items():
                self.values[name] += value / self._number
            if done == 0 and self._number > 1 and self._tell is not None:
                took = time.perf_counter() - known
                # what comes before the first part is for all of them where all were read, and for this one otherwise
                before = known - began if len(self.read) == self._number else (known - began) * self._number
                self._tell.first_part(known - began + took, before + took * self._number)
            done += 1


def _scalars(breakdown: LossBreakdown) -> dict[str, float]:
    """Loss, terms and stats as numbers, averaged over the processes."""
    named = {"loss": breakdown.total.detach(), **breakdown.terms, **breakdown.stats}
    stacked = all_sum(torch.stack([v.float() for v in named.values()])) / world_size()
    return dict(zip(named, stacked.tolist(), strict=True))
