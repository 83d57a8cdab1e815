# SPDX-License-Identifier: Apache-2.0
"""The momentum teacher and the centre of its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rekindle.core.distributed import all_sum, is_distributed
from rekindle.core.progress import Progress
from rekindle.core.schedules import epoch_ramp
from rekindle.networks.sharing import copy_sharing_frozen


def teacher_temperature(progress: Progress, values: tuple[float, float], ramp_epochs: int) -> float:
    """Temperature of the teacher: linear per epoch between `values`, over at most 0.3 of the run's epochs."""
    return epoch_ramp(progress, *values, ramp_epochs=min(ramp_epochs, int(0.3 * progress.num_epochs)))


def cancel_gradients(module: nn.Module) -> None:
    """Drop the gradients of a module, so that AdamW skips its tensors altogether, decay included."""
    for parameter in module.parameters():
        parameter.grad = None


def collapse_alarms(stats: Mapping[str, float], num_prototypes: int) -> list[str]:
    """Say on which level the teacher's targets have collapsed: all images on one prototype, or all prototypes alike."""
    found = []
    for name, value in stats.items():
        if not name.startswith("entropy_"):
            continue
        level, share = name.removeprefix("entropy_"), value / math.log(num_prototypes)
        spread = stats.get(f"divergence_{level}", 0.0) / math.log(num_prototypes)
        if spread > 0.98:
            found.append(f"{level}: nearly all rows fall on one prototype (collapse); lower the learning rate")
        elif share > 0.9999:
            found.append(f"{level}: the teacher's targets are uniform, so nothing is learnt; lower its temperature")
    return found


Network = TypeVar("Network", bound=nn.Module)


class EmaTeacher(nn.Module, Generic[Network]):
    """A copy of the student that follows it slowly: t <- m*t + (1-m)*s (DINO, section 3.1).

    What the student does not train is shared with it by reference: no second copy, no average of equal numbers. The
    teacher is always in evaluation mode, gets no gradient and is never in the optimizer. Averages are kept in float32
    (in bfloat16 m = 0.9995 rounds to 1 and the teacher never moves).
    """

    network: Network

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy_sharing_frozen(student).eval()
        theirs = dict(student.named_parameters())
        self._averaged = tuple(n for n, p in self.network.named_parameters() if p is not theirs[n])
        low = [n for n in self._averaged if theirs[n].dtype in (torch.bfloat16, torch.float16)]
        if low:
            raise ValueError(f"an average needs float32 parameters; {low[0]} is {theirs[low[0]].dtype}")

    def train(self, mode: bool = True) -> EmaTeacher[Network]:
        """Stay in evaluation mode whatever the mode of the method."""
        return super().train(False)

    def averaged_parameters(self) -> list[Tensor]:
        """The parameters that are averages: those the student trains. The others are the student's own."""
        own = dict(self.network.named_parameters())
        return [own[name] for name in self._averaged]

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move each average towards the student: m = 1 leaves it, m = 0 copies. Integer and bool buffers are copied."""
        averages = self.averaged_parameters()
        if averages:
            theirs = dict(student.named_parameters())
            torch._foreach_lerp_(averages, [theirs[name].detach() for name in self._averaged], 1.0 - momentum)
        student_buffers = dict(student.named_buffers())
        for name, buffer in self.network.named_buffers():
            source = student_buffers[name]
            if buffer.is_floating_point():
                buffer.lerp_(source, 1.0 - momentum)
            else:
                buffer.copy_(source)


class Centre(nn.Module):
    """The running mean of the teacher's logits on one level (DINO, eq. 4).

    c <- m*c + (1-m) * mean, the mean over all rows that were observed since the last update, in all micro-batches and
    all processes. Without a row the centre stays as it is.
    """

    value: Tensor
    _sum: Tensor

    def __init__(self, num_prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_prototypes))
        self.register_buffer("_sum", torch.zeros(num_prototypes), persistent=False)
        self._count = 0

    @torch.no_grad()
    def observe_rows(self, rows: Tensor, prototypes: Tensor) -> None:
        """Take note of the logits of rows [R, C] against prototypes [K, C]; nothing moves before `update`.

        The sum of the logits is the product with the sum of the rows.
        """
        total = rows.sum(dim=0, dtype=self._sum.dtype)
        self._sum.addmv_(prototypes.to(self._sum.dtype), total)
        self._count += rows.shape[0]

    @torch.no_grad()
    def forget(self) -> None:
        """Drop what was observed since the last update."""
        self._sum.zero_()
        self._count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre by what was observed, and forget it."""
        count = (
            float(all_sum(torch.tensor(float(self._count), device=self._sum.device)))
            if is_distributed()
            else self._count
        )
        if count:
            self.value.mul_(self.momentum).add_(all_sum(self._sum), alpha=(1.0 - self.momentum) / count)
        self.forget()
