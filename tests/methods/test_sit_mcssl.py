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
    own, other = tiny_sit(multicrop_role=role), tiny_mmc(pat_weight=0.0, replace_p=0.5, multicrop_role=role)
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
    method, batch = tiny_sit().eval(), tiny_batch(3)
    found = method(batch, START)
    expected = plain_terms(method, batch)
    assert {name: float(value) for name, value in found.terms.items()} == pytest.approx(expected, rel=1e-4)


def test_sit_weighs_its_two_terms_and_refuses_one_image() -> None:
    found = tiny_sit(rec_weight=2.0, cls_weight=0.5)(tiny_batch(3), START)
    torch.testing.assert_close(found.total.detach(), 2 * found.terms["rec"] + 0.5 * found.terms["cls"])
    with pytest.raises(RequestError, match="SiT contrasts images with each other"):
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
