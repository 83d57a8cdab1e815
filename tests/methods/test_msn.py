# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.engine.optimizer import build_optimizer, set_schedule
from rekindle.engine.options import OptimOptions
from rekindle.methods.msn import Msn, MsnOptions
from rekindle.networks.backbone import Backbone
from rekindle.objectives import plain
from rekindle.views.batch import ViewBatch
from rekindle.views.token_masks import draw_kept
from tests.methods.scene import ARCH, tiny_backbone, tiny_batch

START = Progress(0, 10)
SMALL: dict[str, Any] = {"num_prototypes": 32, "head_hidden": 32, "head_out": 16}


def tiny_msn(backbone: Backbone | None = None, **options: Any) -> Msn:
    with seeded_default(0, "method"):
        return Msn(MsnOptions(**{**SMALL, **options}), backbone or tiny_backbone("all"))


@torch.no_grad()
def _outputs(method: Msn, batch: ViewBatch) -> tuple[Tensor, Tensor]:
    """Rows of anchors, the large one first, and of targets, computed apart from the method."""
    assert batch.local_views is not None
    student, teacher = method.student, method.teacher.network
    keep = draw_kept(START, len(batch), (4, 4), 13, purpose="anchor patches")  # of 16 * 0.85 = 13.6
    large = student.backbone.visible_tokens(batch.global_views.pixels[1], keep)[:, 0]
    small = torch.cat([student.backbone(view).class_token for view in batch.local_views.pixels])
    targets: Tensor = teacher.head(teacher.backbone(batch.global_views.pixels[0]).class_token)
    return torch.cat([student.head(large), student.head(small)]), targets


@pytest.mark.parametrize("sinkhorn", [True, False])
@pytest.mark.parametrize("memax_weight", [0.0, 1.0, 2.5])
def test_the_loss_is_lightlys(sinkhorn: bool, memax_weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    theirs = pytest.importorskip("lightly.loss.msn_loss")
    method, batch = tiny_msn(sinkhorn=sinkhorn, memax_weight=memax_weight).eval(), tiny_batch(4)
    found = method(batch, START)
    criterion = theirs.MSNLoss(sinkhorn_iterations=3 if sinkhorn else 0, regularization_weight=1.0)
    anchors, targets = _outputs(method, batch)
    with torch.no_grad():
        expected = criterion(anchors, targets, method.prototypes)
        criterion.regularization_weight = 0.0
        plain = criterion(anchors, targets, method.prototypes)
    assert float(found.terms["msn"]) == pytest.approx(float(plain), rel=1e-4)
    expected = plain + memax_weight * (expected - plain)
    assert float(found.total.detach()) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_the_loss_is_the_plain_equations() -> None:
    method, batch = tiny_msn(sinkhorn=False).eval(), tiny_batch(3)
    anchors, targets = (torch.nn.functional.normalize(rows, dim=-1) for rows in _outputs(method, batch))
    ways = torch.nn.functional.normalize(method.prototypes, dim=-1)
    cosines = anchors @ ways.T
    sharp = (targets @ ways.T / 0.1).softmax(dim=-1) ** 4
    sharp = (sharp / sharp.sum(dim=-1, keepdim=True)).repeat(len(anchors) // 3, 1)
    entropy = float(plain.row_cross_entropy(cosines, sharp, temperature=0.1).mean())
    negative_entropy = float(plain.mean_negative_entropy((cosines / 0.1).softmax(dim=-1))) + math.log(32)
    assert float(method(batch, START).total) == pytest.approx(entropy + negative_entropy, rel=1e-4)


def test_targets_carry_no_gradient_and_prototypes_learn_from_the_anchors() -> None:
    method, batch = tiny_msn(), tiny_batch(3)
    seen: list[Tensor] = []
    method.teacher.network.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    method(batch, START).total.backward()
    assert len(seen) == 1 and not seen[0].requires_grad and len(seen[0]) == 3
    assert method.prototypes.grad is not None and bool(method.prototypes.grad.any())


@pytest.mark.parametrize(("width", "ratio"), [(384, 0.15), (768, 0.3), (1024, 0.7)])
def test_larger_networks_drop_more(width: int, ratio: float) -> None:
    backbone = tiny_backbone("all", arch=f"vit:width={width},depth=1,heads=2,patch=8,img=32")
    assert tiny_msn(backbone).mask_ratio == ratio
    assert tiny_msn(backbone, mask_ratio=0.5).mask_ratio == 0.5


def test_dropped_patches_are_not_seen_and_kept_ones_are() -> None:
    method, batch = tiny_msn(mask_ratio=0.5).eval(), tiny_batch(3)
    keep = draw_kept(START, 3, (4, 4), 8, purpose="anchor patches")
    before = method(batch, START).total
    pixels = batch.global_views.pixels
    kept = set(keep[0].tolist())
    for patch, is_seen in ((next(p for p in range(16) if p not in kept), False), (next(iter(kept)), True)):
        row, column = divmod(patch, 4)
        pixels[1, 0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1.0
        assert torch.equal(method(batch, START).total, before) != is_seen


def test_the_momentum_is_a_line_that_ends_after_the_run() -> None:
    """The authors' momentum at the first step, half-way and at the end; the teacher follows by it."""
    method = tiny_msn()
    student, teacher = (
        dict(net.named_parameters())["head.0.weight"] for net in (method.student, method.teacher.network)
    )
    torch.nn.init.ones_(student)
    for step, momentum in ((0, 0.996), (50, 0.9976), (100, 0.9992)):
        torch.nn.init.zeros_(teacher)
        method.after_step(Progress(step, 100))
        assert float(teacher.mean()) == pytest.approx(1 - momentum, rel=1e-3)


def test_prototypes_are_not_decayed() -> None:
    method = tiny_msn()
    optimizer = build_optimizer(method, OptimOptions())
    set_schedule(optimizer, OptimOptions(), START, 256)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(method.prototypes)] == 0.0 and decay[id(method.student.head[0].weight)] == 0.1


def test_one_image_and_a_backbone_without_class_token_are_refused() -> None:
    with pytest.raises(RequestError, match="at least two"):
        tiny_msn()(tiny_batch(1), START)
    with pytest.raises(RequestError, match="has none; choose one with a class token"):
        tiny_msn(tiny_backbone("all", arch=f"{ARCH},class_token=False"))
