# SPDX-License-Identifier: Apache-2.0
"""S29 and S30 of the GLARE specification."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.core.fabric import Fabric
from rekindle.core.progress import Progress
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.optimizer import build_optimizer, clip_gradients, peak_lr, restore_optimizer, set_schedule
from rekindle.engine.options import OptimOptions
from rekindle.engine.step import Stepper
from tests.methods.scene import tiny_batch, tiny_dino, tiny_glare


def test_a_tensor_above_the_limit_ends_at_it_and_others_stay() -> None:
    large, small = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 2))
    large.grad, small.grad = torch.full((4,), 5.0), torch.full((2, 2), 0.1)
    total = clip_gradients([large, small], 3.0)
    assert float(large.grad.norm()) == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(small.grad, torch.full((2, 2), 0.1))
    assert float(total) == pytest.approx((10.0**2 + 0.2**2) ** 0.5)


def test_the_norm_of_all_gradients_may_be_what_is_limited() -> None:
    """torch's own clipping is the oracle; LOCA and MSN clip so."""
    draw = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in (4, 3)]
    theirs = [nn.Parameter(torch.zeros(shape)) for shape in (4, 3)]
    for own, their in zip(ours, theirs, strict=True):
        own.grad = torch.randn(own.shape, generator=draw)
        their.grad = own.grad.clone()
    total = clip_gradients(ours, 1.0, over="all")
    assert float(total) == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 1.0)))
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, their.grad)


def test_no_limit_leaves_gradients_and_tells_a_gradient_that_is_not_finite() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([100.0, 0.0])
    clip_gradients([parameter], 0.0)
    assert float(parameter.grad[0]) == 100.0
    parameter.grad = torch.tensor([float("nan"), 0.0])
    assert not bool(clip_gradients([parameter], 3.0).isfinite())


def test_vectors_and_biases_are_not_decayed_and_the_gain_of_the_prototypes_is() -> None:
    method = tiny_glare()
    optimizer = build_optimizer(method, OptimOptions())
    set_schedule(optimizer, OptimOptions(), Progress(5, 10, 1), 256)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.ndim == 1 or name.endswith(".bias")
            assert decay[id(parameter)] == (0.0 if is_vector else 0.1), name
        else:
            assert id(parameter) not in decay
    gain = method.student.head.last_layer.parametrizations.weight.original0
    assert decay[id(gain)] == 0.1


def test_a_mask_token_is_decayed_as_the_tokens_that_it_stands_for() -> None:
    """[1, D] in iBOT's code and [1, 1, D] in MAE's, so that their optimizers decay it."""
    method = tiny_glare(distortion="mask")
    groups = build_optimizer(method, OptimOptions()).param_groups
    assert method.mask_token is not None and method.mask_token.ndim == 1
    assert any(p is method.mask_token for group in groups if group["decay"] for p in group["params"])


def test_learning_rate_scales_with_the_batch_unless_it_is_the_peak() -> None:
    assert peak_lr(OptimOptions(), 512) == pytest.approx(3e-4)
    assert peak_lr(OptimOptions(lr_is_peak=True), 512) == pytest.approx(1.5e-4)


def test_schedule_reaches_every_group_and_warm_up_is_at_most_a_third() -> None:
    method, options = tiny_glare(), OptimOptions(warmup_epochs=100, final_weight_decay=0.4)
    optimizer = build_optimizer(method, options)
    lr, _ = set_schedule(optimizer, options, Progress(0, 30, 10), 256)
    assert lr == 0.0
    lr, _ = set_schedule(optimizer, options, Progress(10, 30, 10), 256)
    assert lr == pytest.approx(1.5e-4)
    assert {g["lr"] for g in optimizer.param_groups} == {lr}
    lr, decay = set_schedule(optimizer, options, Progress(30, 30, 10), 256)
    assert lr == pytest.approx(1e-5)
    assert decay == pytest.approx(0.4)


def test_a_start_a_stretch_and_a_limit_of_the_warm_up() -> None:
    """MSN's and FLSL's schedules; each option moves what its text says."""
    optimizer = build_optimizer(tiny_dino(), OptimOptions())

    def rate(step: int, batch: int = 256, **options: Any) -> tuple[float, float]:
        return set_schedule(
            optimizer, OptimOptions(lr_per_256=1.0, final_lr=0.0, **options), Progress(step, 100, 1), batch
        )

    assert rate(0, 512, start_lr=0.25)[0] == pytest.approx(0.5)
    assert rate(100, stretch=1.25, warmup_epochs=0)[0] == pytest.approx((1 + math.cos(0.8 * math.pi)) / 2)
    decay = rate(100, stretch=1.25, weight_decay=0.0, final_weight_decay=1.0)[1]
    assert decay == pytest.approx((1 - math.cos(0.8 * math.pi)) / 2)
    assert rate(9, warmup_epochs=30, warmup_limit=0.1)[0] == pytest.approx(1.0)
    assert rate(9, warmup_epochs=30)[0] == pytest.approx(9 / 29)


def test_vectors_are_decayed_where_it_is_asked_for() -> None:
    method = tiny_dino("all")
    groups = build_optimizer(method, OptimOptions(decay_vectors=True)).param_groups
    assert all(group["decay"] for group in groups)


def test_nothing_to_train_is_refused() -> None:
    method = tiny_dino().requires_grad_(False)
    with pytest.raises(RequestError, match="nothing to train"):
        build_optimizer(method, OptimOptions())


class _Undecided(nn.Module):
    """Stands for a method whose `weight` changes its group between two builds."""

    def __init__(self, decayed: set[str]) -> None:
        super().__init__()
        self.weight, self.bias, self.gain = (nn.Parameter(torch.ones(*shape)) for shape in ((2, 2), (3,), (4,)))
        self._decayed = decayed

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return name in self._decayed


@pytest.mark.parametrize("has_names", [True, False])
def test_averages_follow_a_parameter_into_another_group(has_names: bool) -> None:
    """Checkpoints of builds that had no names decayed what has more than one axis."""
    before: Any = _Undecided({"weight"})
    old = build_optimizer(before, OptimOptions())
    for scale, parameter in enumerate(before.parameters(), start=1):
        parameter.grad = torch.full_like(parameter, float(scale))
    old.step()
    stored = old.state_dict()
    if not has_names:
        for group in stored["param_groups"]:
            del group["names"]
    after: Any = _Undecided({"gain"})
    new = build_optimizer(after, OptimOptions())
    restore_optimizer(new, stored, after)
    assert [group["names"] for group in new.param_groups] == [["gain"], ["weight", "bias"]]
    for scale, parameter in enumerate(after.parameters(), start=1):
        assert torch.allclose(new.state[parameter]["exp_avg"], torch.full_like(parameter, 0.1 * scale))


def test_the_backbone_has_a_share_of_the_heads_rate() -> None:
    method, options = tiny_dino(), OptimOptions(lr_per_256=1e-3, backbone_lr_factor=0.1, warmup_epochs=0.0)
    optimizer = build_optimizer(method, options, method.backbone_parameters())
    lr, _ = set_schedule(optimizer, options, Progress(5, 10, 1), 256)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    backbone = {id(p) for p in method.backbone_parameters()}
    assert lr > 0 and backbone < set(rates)
    for name, rate in rates.items():
        assert rate == pytest.approx(0.1 * lr if name in backbone else lr)


def test_a_step_takes_the_backbones_own_rate_without_heads_that_go_ahead() -> None:
    moved = []
    for factor in (1.0, 0.5):
        method = tiny_dino("all", freeze_last_layer_epochs=0)
        options = OptimOptions(lr_per_256=1e-3, backbone_lr_factor=factor, warmup_epochs=0.0, weight_decay=0.0)
        stepper = Stepper(method, Fabric(accelerator="cpu", devices=1), options, precision="fp32")
        watched = [method.backbone_parameters()[0], *list(method.student.head.mlp.parameters())[:1]]
        before = [parameter.detach().clone() for parameter in watched]
        stepper.step(1, TrainingPlan(10, 10, 3, 1, 0), lambda: tiny_batch(3))
        moved.append([float((now.detach() - then).norm()) for now, then in zip(watched, before, strict=True)])
    assert moved[1][0] == pytest.approx(0.5 * moved[0][0], rel=1e-3)
    assert moved[1][1] == pytest.approx(moved[0][1], rel=1e-5)
