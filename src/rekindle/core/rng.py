# SPDX-License-Identifier: Apache-2.0
"""Randomness without global state: every draw comes from (seed, purpose, keys) and can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from rekindle.core.progress import Progress


def derived_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return a 63-bit seed that depends on all arguments and on nothing else."""
    text = ":".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *keys))


def row_uniform(purpose: str, progress: Progress, rows: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) of shape [rows, *shape], one row per image of this micro-batch.

    The whole step's numbers are drawn and this micro-batch's rows are returned: two processes with half a batch each see
    what one process with the whole batch sees. Every micro-batch must hold the same number of rows.
    """
    source = generator(progress.seed, purpose, progress.step)
    everything = torch.rand(progress.num_slots * rows, *shape, generator=source)
    return everything[progress.slot * rows : (progress.slot + 1) * rows]


def row_normal(purpose: str, progress: Progress, rows: int, *shape: int) -> Tensor:
    """Like `row_uniform`, with standard normal numbers."""
    source = generator(progress.seed, purpose, progress.step)
    everything = torch.randn(progress.num_slots * rows, *shape, generator=source)
    return everything[progress.slot * rows : (progress.slot + 1) * rows]


@dataclass
class _PartDraws:
    progress: Progress
    images: int
    purpose: str
    calls: int = 0


_part: ContextVar[_PartDraws | None] = ContextVar("part", default=None)


@contextmanager
def part_draws(progress: Progress, images: int, purpose: str = "part") -> Iterator[None]:
    """Let `view_uniform` draw for a micro-batch of `images` images, the same numbers each time that this is entered.

    An image's numbers do not depend on how many micro-batches or processes its step is cut into.
    """
    token = _part.set(_PartDraws(progress, images, purpose))
    try:
        yield
    finally:
        _part.reset(token)


def view_uniform(rows: int, width: int) -> Tensor:
    """Uniform numbers in [0, 1) of shape [rows, width] on the CPU, one row per view of each image, views first.

    Inside `part_draws` they belong to the images of the step; outside they come from torch's default generator.
    """
    part = _part.get()
    if part is None:
        return torch.rand(rows, width)
    progress, views = part.progress, rows // part.images
    if views * part.images != rows:
        raise ValueError(f"{rows} rows are no whole number of views of {part.images} images")
    source = generator(progress.seed, part.purpose, progress.step, part.calls)
    part.calls += 1
    everything = torch.rand(views, progress.num_slots, part.images, width, generator=source)
    return everything[:, progress.slot].flatten(0, 1)


@contextmanager
def seeded_default(seed: int, purpose: str, *keys: int) -> Iterator[None]:
    """Give torch's default generators a state derived from the arguments, and put the old state back afterwards.

    For code we do not own that draws from the default generator: the initialisation of layers, timm's stochastic depth.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, purpose, *keys))
        yield
