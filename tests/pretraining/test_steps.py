# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rekindle.engine.checkpoints import TrainingPlan
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining import steps as planning
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import PretrainOptions, resolve

SMALL = "vit:width=384,depth=12,heads=6,patch=16,img=224"


def _options(**asked: object) -> PretrainOptions:
    return resolve({}, {"accelerator": "cpu", "seed": 0, **asked}).options


def _plan(options: PretrainOptions, num_images: int, backbone: Backbone | None = None) -> TrainingPlan:
    machine = machine_of(options)
    plan = planning.plan_steps(options, num_images, machine)
    return plan if backbone is None else planning.fitted_to_memory(plan, options, machine, backbone)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone(SMALL, NetworkOptions(), init="random")[0]


def test_less_memory_makes_smaller_micro_batches_of_the_same_batch(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    for free in (64e9, 1e8):
        monkeypatch.setattr(planning, "free_bytes", lambda free=free: int(free))
        plans.append(_plan(_options(batch_size=64), 1000, backbone))
    assert [plan.batch_size // plan.num_slots for plan in plans] == [4, 1]
    assert len({(p.batch_size, p.steps, p.steps_per_epoch) for p in plans}) == 1


def test_micro_batches_on_a_cpu_are_as_large_in_bfloat16_as_in_float32(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(64e9))
    slots = {
        _plan(_options(batch_size=64, precision=precision), 1000, backbone).num_slots for precision in ("fp32", "bf16")
    }
    assert slots == {16}


def test_a_size_that_was_asked_for_is_taken_whatever_the_memory(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: 1)
    options = _options(batch_size=64, engine={"micro_batch_size": 32})
    assert _plan(options, 1000, backbone).num_slots == 2


def test_recomputing_blocks_lets_larger_micro_batches_fit(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(6e8))
    plain, again = (
        _plan(_options(batch_size=64, engine={"recompute_blocks": value}), 1000, backbone) for value in (False, True)
    )
    assert again.num_slots < plain.num_slots


def test_a_small_network_takes_larger_micro_batches_than_a_large_one_on_a_cpu(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(64e9))
    tiny, _ = create_backbone("vit:width=64,depth=4,heads=2,patch=8,img=64", NetworkOptions(), init="random")
    small = _options(batch_size=64, views={"global_size_px": 64, "local_size_px": 32})
    assert _plan(small, 1000, tiny).num_slots == 4
    assert _plan(_options(batch_size=64), 1000, backbone).num_slots == 16


@pytest.mark.parametrize("images", [1, 3, 5, 37, 100])
def test_micro_batches_always_make_up_the_batch(images: int, backbone: Backbone) -> None:
    plan = _plan(_options(batch_size=64), images, backbone)
    assert plan.batch_size % plan.num_slots == 0
    assert 1 <= plan.batch_size <= min(64, images)


def test_processes_take_what_fits_into_the_one_with_least(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(64e9))
    monkeypatch.setattr(planning, "all_max", lambda tensor: tensor.clamp_min(-2))  # another process has room for two
    plan = _plan(_options(batch_size=64, devices=2), 1000, backbone)
    assert (plan.batch_size, plan.num_slots) == (64, 32)


def test_views_that_wait_for_their_step_leave_less_room(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(2.2e9))
    small, large = (_plan(_options(batch_size=size), 1000, backbone) for size in (64, 512))
    assert small.batch_size // small.num_slots > large.batch_size // large.num_slots


def test_processes_of_one_machine_share_its_memory(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(1.2e9))
    alone = _plan(_options(batch_size=64), 1000, backbone)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _plan(_options(batch_size=64), 1000, backbone).num_slots > alone.num_slots


def test_a_method_that_compares_images_is_cut_only_where_memory_asks_for_it(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda: int(64e9))
    assert _plan(_options(method="mocov3", batch_size=48), 1000, backbone).num_slots == 1
    monkeypatch.setattr(planning, "free_bytes", lambda: int(2e9))
    short = _plan(_options(method="mocov3", batch_size=48), 1000, backbone)
    assert short.num_slots > 1 and short.batch_size == 48


def test_a_method_that_compares_images_computes_the_batch_whole_unless_a_size_is_asked_for() -> None:
    assert _plan(_options(method="mocov3", batch_size=48), 1000).num_slots == 1
    two = _options(method="mocov3", batch_size=48, engine={"micro_batch_size": 24})
    assert _plan(two, 1000).num_slots == 2
    assert _plan(_options(method="ibot", batch_size=48), 1000).num_slots == 3
