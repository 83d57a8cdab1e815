# SPDX-License-Identifier: Apache-2.0
"""The two ancestors of MMC: what they share with it, and what they have of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.mcssl import Mcssl, McsslOptions
from rekindle.methods.shared.corruption import corrupt_views
from rekindle.methods.sit import Sit, SitOptions
from rekindle.objectives import plain
from rekindle.pretraining.options import resolve
from tests.methods.scene import SMALL_HEAD, tiny_backbone, tiny_batch
from tests.methods.test_mmc import SMALL, plain_pixel_error, plain_terms, tiny_mmc

START = Progress(0, 10)


def tiny_sit(**options: Any) -> Sit:
    with seeded_default(0, "method"):
        return Sit(SitOptions(**{**SMALL, **options}), tiny_backbone("all"))


def tiny_mcssl(**options: Any) -> Mcssl:
    small = {"pixel_hidden": 32, "max_block": 0.6, **SMALL_HEAD, **options}
    with seeded_default(0, "method"):
        return Mcssl(McsslOptions(**small), tiny_backbone("all"))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_sit_is_mmc_without_patches(role: Any) -> None:
    batch = tiny_batch(4)
    own = tiny_sit(multicrop_role=role)
    other = tiny_mmc(pat_weight=0.0, replace_p=0.5, norm_views="together", rec_norm="together", multicrop_role=role)
    other.load_state_dict(own.state_dict())
    found, expected = (method(batch, Progress(2, 10)) for method in (own, other))
    torch.testing.assert_close(found.terms, expected.terms)
    for method, loss in ((own, found), (other, expected)):
        loss.total.backward()
        method.after_step(Progress(2, 10))
    torch.testing.assert_close(own.state_dict(), other.state_dict())
    gradients = dict(other.named_parameters())
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


@torch.no_grad()
def test_the_terms_of_sit_are_the_plain_equations() -> None:
    method, batch = tiny_sit(norm_views="each", rec_norm="masked").eval(), tiny_batch(3)
    found = method(batch, START)
    expected = plain_terms(method, batch)
    assert {name: float(value) for name, value in found.terms.items()} == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_error_of_sit_is_the_mean_over_the_corrupted_pixels_of_both_views() -> None:
    """Its code: `recloss[torch.cat(masks_crops[0:2])==1].mean()`."""
    method, batch = tiny_sit().eval(), tiny_batch(3)
    clean = batch.global_views.pixels
    hidden = corrupt_views(method.config, clean, 8, START)
    tokens = method.student.backbone(hidden.pixels.flatten(0, 1)).patches.flatten(1, 2)
    patches = method.pixel_head(tokens).view(6, 4, 4, 8, 8, 3)
    restored = patches.permute(0, 5, 1, 3, 2, 4).reshape(6, 3, 32, 32)
    mask = hidden.mask().flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    expected = (restored - clean.flatten(0, 1)).abs()[mask].mean()
    torch.testing.assert_close(method(batch, START).terms["rec"], expected)


@torch.no_grad()
def test_the_heads_of_sit_normalise_both_views_together() -> None:
    """Its code runs student and teacher on the two crops in one batch: `student(torch.cat(corrupted_crops))`."""
    method, tokens = tiny_sit(), torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    together = method.student.rows("cls", tokens)
    torch.testing.assert_close(together.flatten(0, 1), method.student.heads["cls"](tokens.flatten(0, 1)))
    apart = tiny_sit(norm_views="each").student.rows("cls", tokens)
    torch.testing.assert_close(apart[0], method.student.heads["cls"](tokens[0]))
    assert not torch.allclose(together, apart, atol=0.1)


def test_from_scratch_sit_has_the_settings_of_its_code() -> None:
    """Sara-Ahmed/SiT at 7f22e9c, main.py and datasets_utils.py: two crops, zeros over half of each, off the patch grid."""
    resolved = resolve({}, {"method": "sit", "init": "random", "train": "all"})
    options, views = resolved.method_options(), resolved.options.views
    assert isinstance(options, SitOptions)
    assert (options.fill, options.noise_area, options.align_px, options.replace_p) == ("zeros", (0.5, 0.5), 1, 0.5)
    assert (views.num_local, views.global_scale, views.saturation, views.hue) == (0, (0.2, 1.0), 0.2, 0.1)
    assert resolved.options.optim.final_weight_decay == 0.1
    assert options.scale_2tau and options.cls_weight == 2.0  # both directions are summed
    method = tiny_sit(pixel_hidden=None, pixel_layers=4)
    widths = [layer.out_features for layer in method.pixel_head if isinstance(layer, torch.nn.Linear)]
    assert widths == [32, 32, 32, 3 * 8 * 8]


def test_sit_weighs_its_two_terms_and_refuses_one_image() -> None:
    found = tiny_sit(rec_weight=2.0, cls_weight=0.5)(tiny_batch(3), START)
    torch.testing.assert_close(found.total.detach(), 2 * found.terms["rec"] + 0.5 * found.terms["cls"])
    with pytest.raises(RequestError, match="SiT compares the images of a step with each other"):
        tiny_sit()(tiny_batch(1), START)


@torch.no_grad()
def test_the_terms_of_mcssl_are_the_plain_equations() -> None:
    method, batch = tiny_mcssl(concept_weight=3.0).eval(), tiny_batch(3)
    method.upkeep.centre("patch").value.copy_(torch.linspace(-0.1, 0.1, 32))
    clean = batch.global_views.pixels
    hidden = corrupt_views(method.config, clean, 8, START)
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    total, error = 0.0, 0.0
    for view in range(2):
        tokens = student.backbone(hidden.pixels[view])
        whole = teacher.head(teacher.backbone(clean[view]).patches.flatten(0, 2))
        target = plain.centred_softmax(whole, method.upkeep.centre("patch").value, temperature=0.04)
        seen = student.head(tokens.patches.flatten(0, 2))
        total += float(plain.row_cross_entropy(seen, target, temperature=0.1).mean()) / 2
        error += plain_pixel_error(method.pixel_head, tokens, clean[view], hidden.mask()[view]) / 2
    assert float(found.terms["concept"]) == pytest.approx(total, rel=1e-4)
    assert float(found.terms["rec"]) == pytest.approx(error, rel=1e-4)
    assert float(found.total) == pytest.approx(3 * total + error, rel=1e-4)


def test_mcssl_observes_every_clean_patch_for_its_centre_and_makes_no_small_views() -> None:
    method, batch = tiny_mcssl(), tiny_batch(3)
    seen: list[Tensor] = []
    method.teacher.network.backbone.vit.patch_embed.proj.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    method(batch, START)
    assert torch.equal(seen[0], batch.global_views.pixels.flatten(0, 1))
    assert int(method.upkeep.centre("patch").num_observed) == 2 * 3 * 16
    assert Mcssl.NEEDS["views.num_local"] == 0


def test_mcssl_computes_one_image_alone_if_no_other_lends_its_pixels() -> None:
    assert tiny_mcssl(replace_p=0.0)(tiny_batch(1), START).total.isfinite()
    with pytest.raises(RequestError, match="or set replace_p to 0"):
        tiny_mcssl()(tiny_batch(1), START)
