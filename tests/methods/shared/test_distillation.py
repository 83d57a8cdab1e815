# SPDX-License-Identifier: Apache-2.0
"""S11 of the GLARE specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.shared.distillation import Centre, collapsed_targets, divergence
from rekindle.objectives.prototypes import TargetRows
from tests.methods.scene import tiny_dino


def test_centre_after_one_update_is_a_tenth_of_the_mean_and_stays_without_rows() -> None:
    centre, rows, prototypes = Centre(4, 0.9), torch.randn(10, 3), torch.randn(4, 3)
    centre.update()
    assert torch.equal(centre.value, torch.zeros(4))
    centre.observe_rows(rows, prototypes)
    assert torch.equal(centre.value, torch.zeros(4)), "a centre moves after the step, not in the loss"
    centre.update()
    logits = torch.stack([prototypes @ row for row in rows])
    torch.testing.assert_close(centre.value, 0.1 * logits.mean(0))
    kept = centre.value.clone()
    centre.observe_rows(torch.zeros(0, 3), prototypes)
    centre.update()
    assert torch.equal(centre.value, kept)


def test_centre_of_two_micro_batches_is_that_of_all_rows_and_a_forgotten_one_leaves_no_trace() -> None:
    one, two, rows, prototypes = Centre(4, 0.9), Centre(4, 0.9), torch.randn(7, 3), torch.randn(4, 3)
    one.observe_rows(rows, prototypes)
    two.observe_rows(rows + 1, prototypes)
    two.forget()
    for part in (rows[:2], rows[2:]):
        two.observe_rows(part, prototypes)
    one.update()
    two.update()
    torch.testing.assert_close(one.value, two.value)


def test_the_centre_of_bfloat16_rows_is_summed_in_float32() -> None:
    centre, rows, prototypes = Centre(4, 0.0), torch.full((5000, 3), 0.01, dtype=torch.bfloat16), torch.ones(4, 3)
    centre.observe_rows(rows, prototypes)
    centre.update()
    torch.testing.assert_close(centre.value, torch.full((4,), 3 * float(rows[0, 0])))


def test_the_divergence_of_a_sum_of_targets_lies_between_0_and_log_k() -> None:
    for mass, expected in (
        (torch.ones(8), 0.0),
        (torch.eye(8)[:4].sum(0), math.log(2)),
        (3 * torch.eye(8)[0], math.log(8)),
        (torch.zeros(8), 0.0),
    ):
        assert float(divergence(mass)) == pytest.approx(expected, abs=1e-6)


def test_parts_of_one_image_whose_views_agree_are_no_collapse_of_the_step() -> None:
    """Each image on a prototype of its own: the mean target of a part is one prototype, that of the step is not."""
    method = tiny_dino(num_prototypes=4)
    for own in torch.eye(4):

        def compute(index: object, own: Tensor = own) -> Tensor:
            return own.expand(2, -1)

        targets = TargetRows(2, compute, own.device)
        targets.probs()
        method.upkeep.stats(Progress(0, 10), {"cls": targets}, own)
    found = method.step_stats()
    assert float(found["divergence_cls"]) == pytest.approx(0.0, abs=1e-6)
    assert collapsed_targets({"entropy_cls": 0.0, "divergence_cls": float(found["divergence_cls"])}, 4) == []
    assert method.step_stats() == {}, "the next step begins anew"


def test_alarms_tell_both_kinds_of_collapse_by_level() -> None:
    log_k = math.log(32)
    assert collapsed_targets({"entropy_cls": 1.0, "divergence_cls": 1.0}, 32) == []
    one_prototype = collapsed_targets({"entropy_patch": 0.0, "divergence_patch": log_k}, 32)
    uniform = collapsed_targets({"entropy_region": log_k, "divergence_region": 0.0}, 32)
    assert "patch" in one_prototype[0] and "collapse" in one_prototype[0]
    assert "region" in uniform[0] and "uniform" in uniform[0]
