# SPDX-License-Identifier: Apache-2.0
"""Rates, groups and the loop of protocols that train."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rekindle.core.errors import RekindleError
from rekindle.evaluation.classification.options import FinetuneOptions
from rekindle.evaluation.segmentation.options import UperNetOptions
from rekindle.evaluation.training.fitting import (
    endless_order,
    fit,
    fitting_optimizer,
    layer_scales,
    rate,
    training_groups,
)
from rekindle.evaluation.training.options import TrainingOptions
from rekindle.networks.backbone import Backbone
from tests.evaluation.toy import tiny_backbone

OPTIONS = TrainingOptions(steps=100, warmup_steps=10, lr=1.0, schedule_power=0.9, final_lr=0.1)


def twelve_blocks() -> Backbone:
    from rekindle.adapters.saved import load_backbone

    return load_backbone("vit:width=16,depth=12,heads=2,patch=8,img=32", init="random")[0]


@pytest.mark.parametrize(
    ("decay", "embedding", "first", "last"), [(0.65, 0.003697, 0.005688, 0.65), (0.55, 0.000421, 0.000766, 0.55)]
)
def test_layer_scales_are_the_published_ones(decay: float, embedding: float, first: float, last: float) -> None:
    """TEC, property 17."""
    scales = layer_scales(twelve_blocks(), decay, class_token_layer="head")
    assert scales["vit.patch_embed.proj.weight"] == scales["vit.pos_embed"] == pytest.approx(embedding, abs=5e-7)
    assert scales["vit.blocks.0.attn.qkv.weight"] == pytest.approx(first, abs=5e-7)
    assert scales["vit.blocks.11.mlp.fc2.bias"] == pytest.approx(last)
    assert scales["vit.cls_token"] == scales["vit.norm.weight"] == 1.0
    scales = layer_scales(twelve_blocks(), decay, class_token_layer="embedding")
    assert scales["vit.cls_token"] == scales["vit.pos_embed"] == pytest.approx(embedding, abs=5e-7)
    assert scales["vit.norm.weight"] == 1.0


def test_only_tec_counts_the_class_token_with_the_head() -> None:
    """MAE's and BEiT's published configurations count it with the patch embedding, TEC's code with the head (section 13)."""
    found = {name: FinetuneOptions(**preset).class_token_layer for name, preset in FinetuneOptions.PRESETS.items()}
    assert {name for name, layer in found.items() if layer == "head"} == {"tec-mae", "tec-ibot", "tec-large"}
    assert UperNetOptions(**UperNetOptions.PRESETS["paper"]).class_token_layer == "embedding"


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.0), ("sgd", 0.05)])
def test_positions_and_tokens_are_not_decayed(optimizer: str, decay: float) -> None:
    """Three axes each, and still left out (GLARE, section 9.1; MAE's fine-tuning); SGD decays everything alike."""
    backbone = twelve_blocks()
    backbone.vit.reg_token = nn.Parameter(torch.zeros(1, 2, 16))
    head = nn.Linear(16, 3)
    head.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
    groups = training_groups(backbone, head, TrainingOptions.model_validate({"optimizer": optimizer}))
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    tokens = [backbone.vit.pos_embed, backbone.vit.cls_token, backbone.vit.reg_token, head.mask_token]
    assert [decays[id(p)] for p in tokens] == [decay] * 4
    assert decays[id(backbone.vit.patch_embed.proj.weight)] == 0.05


def test_the_rate_rises_and_falls_as_asked() -> None:
    assert rate(0, OPTIONS) == pytest.approx(0.1)
    assert rate(9, OPTIONS) == pytest.approx(1.0)
    assert rate(50, OPTIONS) == pytest.approx(0.1 + 0.9 * 0.5**0.9)
    assert rate(100, OPTIONS) == pytest.approx(0.1)


def test_the_rate_falls_along_a_cosine_as_asked() -> None:
    options = OPTIONS.model_copy(update={"schedule": "cosine"})
    assert rate(9, options) == pytest.approx(1.0)
    assert rate(10, options) == pytest.approx(1.0)
    assert rate(55, options) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate(100, options) == pytest.approx(0.1)


def test_vectors_are_not_decayed_and_heads_are_faster() -> None:
    backbone, head = tiny_backbone(), nn.Linear(16, 3)
    groups = training_groups(backbone, head, TrainingOptions(layer_decay=0.5, head_lr_scale=7.0))
    by_parameter = {id(p): (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert by_parameter[id(head.weight)] == (7.0, 0.05)
    assert by_parameter[id(head.bias)] == (7.0, 0.0)
    assert by_parameter[id(backbone.vit.blocks[1].attn.qkv.weight)] == (0.5, 0.05)
    assert by_parameter[id(backbone.vit.blocks[0].norm1.weight)] == (0.25, 0.0)
    assert len(by_parameter) == len([*backbone.parameters(), *head.parameters()])


def test_every_group_has_its_rate_at_every_step() -> None:
    """The step of plain gradient descent is rate x scale x gradient, which is 1 here."""
    a, b = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1, 1))
    options = TrainingOptions(steps=3, warmup_steps=0, lr=0.5, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    groups = [{"params": [p], "scale": s, "weight_decay": 0.0} for p, s in ((a, 1.0), (b, 0.1))]
    fit(groups, lambda _: a.sum() + b.sum(), range(3), options, seed=0, message=print)
    moved = sum(rate(step, options) for step in range(3))
    assert a.item() == pytest.approx(-moved)
    assert b.item() == pytest.approx(-0.1 * moved)


def test_a_loss_that_is_not_finite_stops_before_weights_move() -> None:
    p = nn.Parameter(torch.ones(2, 2))

    def loss(step: int) -> Tensor:
        return p.sum() * (float("nan") if step else 1.0)

    groups = [{"params": [p], "scale": 1.0, "weight_decay": 0.0}]
    with pytest.raises(RekindleError, match=r"loss is nan at step 1; lower lr = 0\.0002"):
        fit(groups, loss, range(5), TrainingOptions(steps=5, warmup_steps=0), seed=0, message=print)
    assert bool(p.isfinite().all())


def test_optimizers_are_those_asked_for() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "scale": 1.0, "weight_decay": 0.0}]
    assert isinstance(fitting_optimizer(groups, TrainingOptions()), torch.optim.AdamW)
    sgd = fitting_optimizer(groups, TrainingOptions(optimizer="sgd", momentum=0.7))
    assert sgd.param_groups[0]["momentum"] == 0.7


def test_every_image_comes_once_before_one_comes_twice() -> None:
    order = endless_order([3, 5, 8], 0, "x")
    drawn = [next(order) for _ in range(9)]
    assert all(sorted(drawn[i : i + 3]) == [3, 5, 8] for i in (0, 3, 6))
