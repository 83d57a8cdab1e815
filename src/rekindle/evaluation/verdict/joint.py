# SPDX-License-Identifier: Apache-2.0
"""Max-t over several differences: intervals and words whose common chance of any false one is 1 - level.

The largest of the standardised differences is compared with that of normal variables that correlate as the differences do in
the resamples, which they share, so that protocols that move together are not paid for twice (Hothorn, Bretz and Westfall,
Biometrical Journal 50, 2008); what is told apart is taken out, and the rest is looked at again (Westfall and Young,
Resampling-Based Multiple Testing, 1993; Romano and Wolf, Journal of the American Statistical Association 100, 2005, algorithm
3.1). The critical value is turned into the coverage that each single interval needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rekindle.evaluation.scores.score import Values
from rekindle.evaluation.verdict.difference import Difference
from rekindle.evaluation.verdict.judging import Joint, can_judge, word_of

Look = TypeVar("Look", bound=Hashable)
NORMALS = 50_000
"""Draws of the normal variables: their quantile is known to 0.01."""


def joint_verdicts(
    differences: Mapping[Look, Difference], level: float, margins: Mapping[Look, float | None] | None = None
) -> dict[Look, Joint]:
    """Judge differences together; descriptions and what cannot be judged are none of them.

    Args:
        differences: of one base, measured on the same items where the protocols read the same.
        level: common coverage of all intervals.
        margins: of each, as of `word_of`.

    Returns: one entry per difference that is judged; nothing where there is a single one.
    """
    active = {look: own for look, own in differences.items() if own.score.is_judged and can_judge(own)}
    looks, decided = len(active), dict[Look, Joint]()
    if looks < 2:
        return {}
    while active:
        each = single_level([*active.values()], level)
        found = {}
        for look, own in active.items():
            low, high = own.interval(each)
            margin = (margins or {}).get(look)
            word = word_of(own, low, high, margin)
            if word in ("better", "worse") and word_of(own, *own.interval(level), margin) == "equivalent":
                word = "no difference"  # wider, it leaves the margin: a word may grow weaker with the looks, not turn
            found[look] = Joint(verdict=word, low=low, high=high, level=each, looks=looks)
        told_apart = [look for look, own in found.items() if not own.low <= 0 <= own.high]
        if not told_apart or len(told_apart) == len(active):
            return decided | found
        for look in told_apart:
            decided[look] = found[look]
            del active[look]
    return decided


def single_level(differences: Sequence[Difference], level: float) -> float:
    """Coverage that each interval needs so that all together have `level`; at least that (all as one).

    Not cut at Bonferroni's from above: the quantile is an estimate, and cutting one side of its error off makes it too low.
    """
    if len(differences) == 1:
        return level
    from scipy.special import ndtr  # a tenth of a second that training need not wait for

    together = np.stack([_standardised(own) for own in differences])
    values, vectors = np.linalg.eigh(together @ together.T / together.shape[1])
    normal = np.random.default_rng(0).standard_normal((NORMALS, len(differences)))
    largest = np.abs(normal @ (vectors * np.sqrt(np.maximum(values, 0.0))).T).max(axis=1)
    return float(max(2 * ndtr(np.quantile(largest, level)) - 1, level))


def _standardised(own: Difference) -> Values:
    """The resamples about their mean, over their spread [R]; 0 where undefined, or where nothing varies."""
    if own.spread == 0.0:
        return np.zeros(len(own.draws))
    return np.nan_to_num((own.draws - np.nanmean(own.draws)) / own.spread)
