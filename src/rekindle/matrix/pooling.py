# SPDX-License-Identifier: Apache-2.0
"""Several trainings of one kind against their start: the mean, its spread over training seeds, an interval, a verdict.

The value of a kind is the score of each (training seed, evaluation seed), averaged; its interval is that of a `Difference`
whose model has several trainings, so it covers the choice of items, the training of the heads and the training of the
backbones. With one training seed it covers items and heads alone, and is that of `rekindle compare`.

Where heads are as long to train as the backbone, each training is measured with one evaluation seed, that of its own number,
and the start with all of them: a resample then draws items and pairs of seeds.
"""

from __future__ import annotations

from rekindle.evaluation.verdict.difference import Difference, deviation
from rekindle.evaluation.verdict.judging import Joint, Judged, judged_fields


class Pooled(Judged):
    """Some trainings of one kind against their start."""

    mean: float
    """Mean over training and evaluation seeds."""
    start_mean: float
    """Mean of the start over the evaluation seeds."""
    by_training_seed: list[float]
    """Means over the evaluation seeds."""
    training_std: float
    """Their standard deviation (n - 1); 0 with one training seed."""
    evaluation_std: float
    """Standard deviation over the evaluation seeds (n - 1) of the mean over the training seeds; 0 with one, and of pairs, where
    `training_std` holds both."""


def pooled_of(
    found: Difference, *, level: float = 0.95, margin: float | None = None, joint: Joint | None = None
) -> Pooled:
    """Judge the trainings of one kind. Args: as of `judged_fields`."""
    is_paired = found.trainings != len(found.model)
    by_training = found.model[0] if is_paired else found.model.mean(axis=1)
    return Pooled(
        **judged_fields(found, level, margin, joint),
        mean=float(found.model.mean()),
        start_mean=float(found.base.mean()),
        by_training_seed=by_training.tolist(),
        training_std=deviation(by_training),
        evaluation_std=0.0 if is_paired else deviation(found.model.mean(axis=0)),
    )
