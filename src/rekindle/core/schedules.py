# SPDX-License-Identifier: Apache-2.0
"""Schedules: pure functions of progress."""

from __future__ import annotations

import math

from rekindle.core.progress import Progress


def cosine(progress: Progress, start: float, end: float, *, warmup_steps: int = 0, stretch: float = 1.0) -> float:
    """Half a cosine from `start` (after the warm-up) to `end` (at the last step, or the last of a run `stretch` times as long).

    Formula: end + (start - end) / 2 * (1 + cos(pi * t / T)), t counted after the warm-up (DINO, section "implementation").
    """
    span = max(1.0, stretch * progress.total - warmup_steps)
    t = min(max(0, progress.step - warmup_steps), span)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * t / span))


def linear(progress: Progress, start: float, end: float, *, stretch: float = 1.0) -> float:
    """Linear from `start` at step 0 to `end` after `stretch` times the run's steps, which a stretch above 1 does not reach."""
    share = min(1.0, progress.step / max(1.0, stretch * progress.total))
    return start + (end - start) * share


def warmup_cosine(
    progress: Progress, peak: float, end: float, *, warmup_steps: int, start: float = 0.0, stretch: float = 1.0
) -> float:
    """Linear from `start` at step 0 to `peak` at the end of the warm-up, then `cosine` to `end`.

    The warm-up is linspace(start, peak, warmup_steps): its first step has value `start`, its last has `peak`.
    """
    if progress.step < warmup_steps:
        return start + (peak - start) * progress.step / max(1, warmup_steps - 1)
    return cosine(progress, peak, end, warmup_steps=warmup_steps, stretch=stretch)


def epoch_ramp(progress: Progress, start: float, end: float, *, ramp_epochs: int) -> float:
    """Linear per epoch from `start` in epoch 0 to `end` in epoch index `ramp_epochs - 1`; constant afterwards.

    The teacher temperature of DINO: linspace(start, end, ramp_epochs), one value per epoch.
    """
    if ramp_epochs <= 1 or progress.epoch >= ramp_epochs:
        return end
    return start + (end - start) * progress.epoch / (ramp_epochs - 1)
