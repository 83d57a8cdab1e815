# SPDX-License-Identifier: Apache-2.0
"""S11 of the GLARE specification."""

from __future__ import annotations

import math

import torch

from rekindle.methods.shared.distillation import Centre, collapsed_targets


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


def test_alarms_tell_both_kinds_of_collapse_by_level() -> None:
    log_k = math.log(32)
    assert collapsed_targets({"entropy_cls": 1.0, "divergence_cls": 1.0}, 32) == []
    one_prototype = collapsed_targets({"entropy_patch": 0.0, "divergence_patch": log_k}, 32)
    uniform = collapsed_targets({"entropy_region": log_k, "divergence_region": 0.0}, 32)
    assert "patch" in one_prototype[0] and "collapse" in one_prototype[0]
    assert "region" in uniform[0] and "uniform" in uniform[0]
