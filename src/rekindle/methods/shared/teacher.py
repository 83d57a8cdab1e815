# SPDX-License-Identifier: Apache-2.0
"""EMA teacher: a network that follows the student slowly."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rekindle.networks.sharing import copy_sharing_frozen

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
