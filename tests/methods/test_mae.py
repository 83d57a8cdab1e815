# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.mae import Mae, MaeOptions, draw_visible
from rekindle.objectives import plain
from rekindle.views.batch import ViewBatch, Views
from tests.methods.scene import ARCH, tiny_backbone, tiny_batch

START = Progress(0, 10)
SMALL: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def tiny_mae(train: str = "all", *, arch: str = ARCH, **options: Any) -> Mae:
    with seeded_default(0, "method"):
        return Mae(MaeOptions(**{**SMALL, **options}), tiny_backbone(train, arch=arch))


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_plain_error_of_hidden_patches(normalise: bool) -> None:
    """MAE, section 3, patch by patch."""
    method, batch = tiny_mae(normalise_pixels=normalise).eval(), tiny_batch(2)
    found = float(method(batch, START).total)
    keep, hidden = draw_visible(START, 2, 2, 16, 0.75)
    pixels = batch.global_views.pixels.flatten(0, 1)
    predicted = method.decoder(method.student.visible_tokens(pixels, keep), keep, (4, 4))
    wanted = torch.empty(4, 16, 192)
    for n in range(4):
        for p in range(16):
            y, x = 8 * (p // 4), 8 * (p % 4)
            want = pixels[n, :, y : y + 8, x : x + 8].permute(1, 2, 0).flatten()
            wanted[n, p] = (want - want.mean()) / (want.var() + 1e-6).sqrt() if normalise else want
    assert int(hidden.sum()) == 4 * 12
    assert found == pytest.approx(float(plain.hidden_patch_error(predicted, wanted, hidden)), rel=1e-5)


def test_masks_hide_three_quarters_and_differ_between_images() -> None:
    keep, hidden = draw_visible(START, 5, 2, 196, 0.75)
    assert keep.shape == (10, 49) and bool((hidden.sum(dim=1) == 147).all())
    assert not hidden.gather(1, keep).any()
    assert len({tuple(row.tolist()) for row in keep}) == 10
    for ratio, visible in ((0.01, 3), (0.99, 1)):  # one patch of each kind at least
        assert draw_visible(START, 1, 2, 4, ratio)[0].shape == (2, visible)


@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_encoder() -> None:
    method, batch = tiny_mae().eval(), tiny_batch(2)
    keep, hidden = draw_visible(START, 2, 2, 16, 0.75)
    pixels = batch.global_views.pixels.flatten(0, 1)
    noise = torch.randn_like(pixels) * hidden.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(
        method.student.visible_tokens(pixels + noise, keep), method.student.visible_tokens(pixels, keep)
    )


def test_thirty_steps_lower_the_loss_of_a_smooth_image() -> None:
    method, batch = tiny_mae("adapters", normalise_pixels=False), tiny_batch(4)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        found = method(batch, Progress(step, 30))
        found.total.backward()
        optimizer.step()
        losses.append(float(found.total.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_registers_are_refused_unless_they_may_be_encoded() -> None:
    arch = f"{ARCH},registers=2"
    with pytest.raises(RequestError, match=r"2 registers besides; --mae\.registers encode"):
        tiny_mae(arch=arch)
    found = tiny_mae(arch=arch, registers="encode")(tiny_batch(), START)
    assert bool(found.total.isfinite())


def test_a_backbone_without_class_token_and_one_with_rotary_positions_are_trained_too() -> None:
    for arch in (f"{ARCH},class_token=false", "dinov3:width=32,depth=2,heads=2,patch=8,registers=0"):
        method = tiny_mae(arch=arch)
        found = method(tiny_batch(), START)
        found.total.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_a_decoder_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(RequestError, match="decoder_width = 18 cannot have decoder_heads = 4"):
        tiny_mae(decoder_width=18, decoder_heads=4)


def test_one_optimizer_step_sees_each_image_twice() -> None:
    batch = tiny_batch(2)
    same = Views(batch.global_views.pixels[:1].expand(2, -1, -1, -1, -1), batch.global_views.crops)
    keep, _ = draw_visible(START, 2, 2, 16, 0.75)
    assert not torch.equal(keep[:2], keep[2:])  # the two crops are hidden on their own
    assert bool(tiny_mae()(ViewBatch(same, None, batch.image_index), START).total.isfinite())
