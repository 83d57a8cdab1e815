# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from rekindle.bench.limit import MatrixProduct
from rekindle.bench.stage import count_flops, fixed_views, view_list
from rekindle.bench.step import OursDino, OursGlare
from tests.bench.cases import tiny
from tests.bench.uncomputed import Uncomputed, Widened


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("side", [OursDino, OursGlare])
def test_a_round_is_a_whole_step_on_the_same_views(side: type[OursDino | OursGlare], precision: str) -> None:
    bench = side(tiny("step", precision=precision))
    before = {name: value.clone() for name, value in bench._stepper.method.state_dict().items()}
    with Widened():
        assert [bench.run(), bench.run()] == [4, 4]
        facts = bench.facts()
    losses = facts["losses"]
    assert isinstance(losses, list) and len(losses) == 2, "the step whose operations are counted is not a round"
    assert all(math.isfinite(loss) for loss in losses) and losses[0] != losses[1]
    moved = {name for name, value in bench._stepper.method.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("student.backbone") and "adapter" in name for name in moved)
    assert any(name.startswith("teacher.network.backbone") and "adapter" in name for name in moved)
    assert any("last_layer" in name for name in moved), "the epochs in which prototypes are held are over"
    assert not any(name.endswith("attn.qkv.weight") for name in moved)
    assert facts["trained_parameters"] == sum(p.numel() for p in bench._stepper.method.parameters() if p.requires_grad)
    assert facts["train"] == "adapters"


def test_two_builds_of_a_case_take_the_same_steps() -> None:
    first, second = OursGlare(tiny("step")), OursGlare(tiny("step"))
    for side in (first, second):
        side.run()
        side.run()
    assert first._losses == second._losses
    other = OursGlare(tiny("step", seed=1))
    other.run()
    assert other._losses[0] != first._losses[0]


def test_all_weights_train_where_that_is_asked_for() -> None:
    adapters, everything = (OursDino(tiny("step", train=train)) for train in ("adapters", "all"))
    trained = {name for name, p in everything._stepper.method.named_parameters() if p.requires_grad}
    assert "student.backbone.vit.blocks.0.attn.qkv.weight" in trained
    assert not any("adapter" in name for name in trained)
    more, fewer = everything.facts()["flops"], adapters.facts()["flops"]
    assert isinstance(more, int) and isinstance(fewer, int) and more > 0 and fewer > 0


def test_all_sides_are_given_the_same_views_of_the_sizes_that_were_asked_for() -> None:
    case = tiny("step")
    batch, again = fixed_views(case), fixed_views(case)
    views = view_list(batch)
    assert [tuple(view.shape) for view in views] == [(4, 3, 64, 64)] * 2 + [(4, 3, 32, 32)] * 2
    assert all(torch.equal(a, b) for a, b in zip(views, view_list(again), strict=True))
    assert torch.equal(views[1], batch.global_views.pixels[1])
    assert batch.local_views is not None
    for group, scale in ((batch.global_views, (0.25, 1.0)), (batch.local_views, (0.05, 0.25))):
        crops = group.crops
        assert crops.top.shape == (2, 4)
        assert bool(((crops.top >= 0) & (crops.top + crops.height <= 1 + 1e-6)).all())
        area = crops.height * crops.width
        assert bool(((area > scale[0] * 0.9) & (area < scale[1] * 1.1)).all()), "cut as training cuts"


def test_the_limit_counts_its_own_operations_rightly() -> None:
    """Oracle: torch's counter."""
    for precision in ("fp32", "bf16"):
        limit = MatrixProduct(tiny("step", precision=precision))
        with Uncomputed():
            assert limit.facts()["flops"] == count_flops(limit.run) == 50 * 2 * 2048 * 384 * 1536
        with Widened():
            assert limit.run() == 0
