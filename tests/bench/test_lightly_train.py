# SPDX-License-Identifier: Apache-2.0
"""The sides of LightlyTrain, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rekindle.networks.checkpoints.architecture import build_vit, parse_arch
from rekindle.views.options import ViewsOptions
from tests.bench.cases import tiny
from tests.bench.uncomputed import Widened

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lightly_train") is None, reason="lightly-train is not installed"),
    pytest.mark.filterwarnings("default"),  # its own, and its Trainer's
]

NAMES = ("LightlyTrainDino", "LightlyTrainDinov2")
PATCH_14 = "vit:width=32,depth=2,heads=2,patch=14,img=112"
VIEWS_14 = ViewsOptions(global_size_px=112, local_size_px=56, num_local=2)
CASE_14 = tiny("step", backbone=PATCH_14, views=VIEWS_14)


def peers() -> Any:
    return importlib.import_module("rekindle.bench.peers.lightly_train_step")


def built(name: str, **changes: object) -> Any:
    return getattr(peers(), name)(tiny("step", **{"backbone": PATCH_14, "views": VIEWS_14, **changes}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_a_step_of_all_weights(name: str, precision: str) -> None:
    side = built(name, precision=precision)
    trained = {n: p for n, p in side._method.named_parameters() if n.startswith("student") and p.requires_grad}
    assert {id(p) for p in side._parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    before = {n: value.clone() for n, value in side._method.state_dict().items()}
    with Widened():
        assert [side.run(), side.run()] == [4, 4]
        facts = side.facts()
    losses = facts["losses"]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    moved = {n for n, value in side._method.state_dict().items() if not torch.equal(value, before[n])}
    parts = ("student_embedding_model", "student_.*last_layer", "teacher_embedding_model")
    assert all(any(re.match(part, n) for n in moved) for part in parts), "nothing is frozen any more"
    assert facts["trained_parameters"] == sum(p.numel() for p in trained.values())
    assert facts["flops"] > 0 and facts["train"] == "all"


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_its_trainer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: PyTorch Lightning's Trainer over the same views, from the first step of a run of three on."""
    lightning: Any = importlib.import_module("pytorch_lightning")
    for constant, value in (("FIRST_STEP", 0), ("STEPS", 3), ("EPOCHS", 1)):
        monkeypatch.setattr(peers(), constant, value)
    monkeypatch.setitem(peers().LightlyTrainDinov2.METHOD_ARGS, "student_freeze_backbone_steps", 1)
    side = built(name)
    other = side._build(CASE_14)
    other.load_state_dict(side._method.state_dict())
    other._log_example_views = lambda train_batch: None
    monkeypatch.setattr(peers().DINOv2, "RECOMMENDED_MIN_STEPS", 0)

    def draw_from_the_start(*_: object) -> None:
        torch.manual_seed(3)
        random.seed(3)

    batches = [{"views": side._views, "filename": [""] * 4}] * 3
    loader: Any = DataLoader(batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[lightning.callbacks.LambdaCallback(on_train_start=draw_from_the_start)],
        **dict.fromkeys(quiet, False),
    ).fit(other, loader)
    draw_from_the_start()
    for _ in range(3):
        side.run()
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[n]) for n, value in side._method.state_dict().items())


def test_two_builds_of_a_case_draw_the_same_masks_and_paths() -> None:
    losses = []
    for seed in (0, 0, 1):
        side = built("LightlyTrainDinov2", seed=seed)
        side.run()
        side.run()
        losses.append(side._losses)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("arch", [PATCH_14, "vit:width=48,depth=3,heads=3,patch=16,img=64,registers=2"])
def test_dinov2_has_the_sizes_that_were_asked_for(arch: str) -> None:
    """Oracle: timm's ViT of these sizes, with layer scale; a mask token and a position of the class token come on top."""
    asked = replace(parse_arch(arch), layer_scale=True, no_embed_class=True)
    side = built("LightlyTrainDinov2", backbone=arch, num_prototypes=24)
    network = side._method.student_embedding_model.wrapped_model.get_model()
    assert sum(p.numel() for p in network.parameters()) == (
        sum(p.numel() for p in build_vit(asked).parameters()) + 2 * asked.width
    )
    assert [block.attn.num_heads for block in network.blocks] == [asked.heads] * asked.depth
    assert network.patch_size == asked.patch
    assert side._method.student_head.dino_head.last_layer.out_features == 24


def test_dinov2_moves_all_weights_by_all_four_terms_past_its_warm_ups() -> None:
    side = built("LightlyTrainDinov2")
    args = side._method.method_args
    assert args.koleo_loss_weight > 0 and args.ibot_loss_weight > 0 and args.dino_loss_weight > 0
    assert args.gradient_clip_val == peers().CLIP_NORM
    waits = (args.student_freeze_backbone_steps, args.student_freeze_last_layer_steps, args.teacher_temp_warmup_steps)
    assert max(waits) < peers().FIRST_STEP
    before = {n: p.detach().clone() for n, p in side._method.student_embedding_model.named_parameters()}
    side.run()
    assert not [n for n, p in side._method.student_embedding_model.named_parameters() if torch.equal(p, before[n])]
    terms = side._method.training_step_impl({"views": side._views}, 0).log_dict
    assert {key.removeprefix("train_loss/") for key, value in terms.items() if float(value.detach()) != 0} == {
        "dino_global_loss",
        "dino_local_loss",
        "ibot_loss",
        "koleo_loss",
    }
