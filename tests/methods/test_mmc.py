# SPDX-License-Identifier: Apache-2.0
"""MMC against its specification; properties 3 and 7 to 11 are those of the whole method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rekindle.methods.mmc as mmc_module
import rekindle.methods.shared.whole_step as whole_step
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.mmc import Mmc, MmcOptions, drawn_positions, places_in_step
from rekindle.methods.shared.class_contrast import ContrastOptions, compared_views
from rekindle.methods.shared.corruption import (
    CorruptionOptions,
    corrupt_views,
    corrupted_pixels,
    reconstruction,
    reconstruction_mean,
)
from rekindle.methods.sit import Sit
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives import plain
from rekindle.objectives.reconstruction import corrupted_pixel_error
from rekindle.views.batch import ViewBatch
from rekindle.views.group_masks import CorruptedViews
from rekindle.views.options import ViewsOptions
from tests.methods.scene import tiny_backbone, tiny_batch

START = Progress(0, 10)
SMALL: dict[str, Any] = {"head_hidden": 32, "head_out": 16, "pixel_hidden": 32, "max_block": 0.6}
TWO_VIEWS = ViewsOptions(global_size_px=32, local_size_px=16, num_local=0)


def tiny_mmc(train: str = "all", **options: Any) -> Mmc:
    with seeded_default(0, "method"):
        return Mmc(MmcOptions(**{**SMALL, **options}), tiny_backbone(train))


@torch.no_grad()
def test_the_loss_is_the_plain_equations() -> None:
    method, batch = tiny_mmc().eval(), tiny_batch(3)
    found, expected = method(batch, START), plain_terms(method, batch)
    assert {name: float(value) for name, value in found.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert expected.keys() == {"rec", "cls", "pat"}
    assert float(found.total) == pytest.approx(sum(expected.values()), rel=1e-4)


def plain_terms(method: Mmc | Sit, batch: ViewBatch) -> dict[str, float]:
    """L_REC, L_CLS and, where there is a head for it, L_PAT: every view on its own, by the plain equations."""
    student, teacher = method.student, method.teacher.network
    clean, small = batch.global_views.pixels, batch.local_views
    hidden = corrupt_views(method.config, clean, 8, START)
    assert small is not None and method.pixel_head is not None
    seen, whole = [student.backbone(v) for v in hidden.pixels], [teacher.backbone(v) for v in clean]
    errors = [plain_pixel_error(method.pixel_head, seen[v], clean[v], hidden.mask()[v]) for v in range(2)]
    classes = [tokens.class_token for tokens in (*seen, *(student.backbone(v) for v in small.pixels))]
    q = [student.heads["cls"](cls) for cls in classes]
    k = [teacher.heads["cls"](tokens.class_token) for tokens in whole]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    contrast = [float(plain.info_nce(q[s], k[t], temperature=0.2)) for s, t in pairs]
    terms = {"rec": sum(errors) / 2, "cls": sum(contrast) / 6}
    if "patch" in student.heads:
        patches = []
        for view in range(2):
            queries, keys = (
                net.heads["patch"](tokens[view].patches.flatten(0, 2)).view(3, 16, -1)
                for net, tokens in ((student, seen), (teacher, whole))
            )
            patches.append(plain.patch_nce(queries, keys, temperature=0.2))
        terms["pat"] = float(torch.stack(patches).mean())
    return terms


def plain_pixel_error(head: torch.nn.Module, seen: Tokens, clean: Tensor, mask: Tensor) -> float:
    """L_REC of one view of 3 images, which stand below each other."""
    restored = head(seen.patches).view(3, 4, 4, 8, 8, 3).permute(5, 0, 1, 3, 2, 4).reshape(3, 96, 32)
    return float(plain.corrupted_pixel_error(restored, clean.transpose(0, 1).reshape(3, 96, 32), mask.flatten(0, 1)))


# Property 3


def test_property_3_only_errors_of_corrupted_pixels_count() -> None:
    pixels = torch.randn(6, 4, 3)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:3, 1:] = True
    assert corrupted_pixel_error(pixels, pixels, mask).tolist() == [0.0] * 6
    outside = pixels + 7.0 * ~mask[..., None]
    assert corrupted_pixel_error(outside, pixels, mask).tolist() == [0.0] * 6
    inside = pixels + 0.25 * mask[..., None]
    wanted = [0.25 * 3] * 3 + [0.0] * 3  # three pixels each
    assert corrupted_pixel_error(inside, pixels, mask).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("align_px", [1, 4, 8, 16])
@pytest.mark.parametrize("rec_norm", ["masked", "all"])
def test_property_3_the_target_is_the_clean_crop_whatever_the_groups(align_px: int, rec_norm: Any) -> None:
    """A head that knows the clean pixels is right; with an error e inside, e or e times the coverage. Tokens are the pixels."""
    config = CorruptionOptions(**{k: v for k, v in SMALL.items() if not k.startswith("head")}, rec_norm=rec_norm)
    clean = torch.randn(2, 3, 3, 32, 32)
    cells = torch.rand(2, 3, 32 // align_px, 32 // align_px) < 0.4
    corrupted = CorruptedViews(clean, cells, torch.zeros(2, 3, dtype=torch.bool), align_px)
    patches = clean.view(2, 3, 3, 4, 8, 4, 8).permute(0, 1, 3, 5, 4, 6, 2).reshape(2, 3, 16, 192)

    class Off(torch.nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return rows + 0.5

    counts = corrupted_pixels(config, corrupted).sum(dim=1)
    perfect, wrong = (
        reconstruction_mean(reconstruction(config, head, patches, clean, corrupted, 8), counts)
        for head in (torch.nn.Identity(), Off())
    )
    coverage = float(corrupted.mask().float().mean())
    assert float(perfect) == 0.0
    if rec_norm == "masked":
        assert float(wrong) == pytest.approx(0.5, rel=1e-5)
    else:
        assert float(wrong) == pytest.approx(0.5 * coverage, rel=1e-5)


# Properties 7 to 11


def test_property_7_enough_negatives_are_all_of_them() -> None:
    batch = tiny_batch(3)
    full = tiny_mmc()(batch, START).terms["pat"]
    for count in (32, 100):  # (3 - 1) * 16 patches of other images
        torch.testing.assert_close(tiny_mmc(max_negatives=count)(batch, START).terms["pat"], full)
    fewer = tiny_mmc(max_negatives=10)(batch, START).terms["pat"]
    assert float(fewer) < float(full)
    drawn = drawn_positions(START, 3, 16, 10)
    assert drawn.shape == (3, 5) and all(len(set(row.tolist())) == 5 for row in drawn)
    assert not torch.equal(drawn, drawn_positions(Progress(1, 10), 3, 16, 10))


def test_property_8_the_class_pairs_of_each_reading() -> None:
    def pairs(num_local: int, **options: Any) -> list[tuple[int, int]]:
        found = compared_views(ContrastOptions(**options), num_local)
        return [(s, t) for s, t in found.nonzero().tolist()]

    assert pairs(0) == [(0, 1), (1, 0)]
    assert pairs(0, cls_pairs="same") == [(0, 0), (1, 1)]
    assert pairs(1) == [(0, 1), (1, 0), (2, 0), (2, 1)]
    assert pairs(1, multicrop_role="teacher") == [(0, 1), (0, 2), (1, 0), (1, 2)]
    assert len(pairs(10)) == len(pairs(10, multicrop_role="teacher")) == 22
    corrupted = [pair for pair in pairs(10) if max(pair) < 2]
    page = Path(__file__).parents[2] / "docs" / "methods" / "mmc.md"
    assert f"weigh {len(corrupted)}/{len(pairs(10))}" in page.read_text(encoding="utf-8")  # and the page says so


def test_property_9_the_teacher_sees_clean_views_gets_no_gradient_and_follows_slowly() -> None:
    method, batch = tiny_mmc(), tiny_batch(3)
    seen: list[Tensor] = []
    teacher: Any = method.teacher.network.backbone.vit.patch_embed.proj
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    method(batch, START).total.backward()
    assert len(seen) == 1 and torch.equal(seen[0], batch.global_views.pixels.flatten(0, 1))
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    name = "backbone.vit.blocks.0.attn.qkv.weight"
    before = dict(method.teacher.network.named_parameters())[name].clone()
    own = dict(method.student.named_parameters())[name]
    with torch.no_grad():
        own.add_(1.0)
    for progress, m in ((START, 0.996), (Progress(10, 10), 1.0)):
        expected = m * before + (1 - m) * own.detach()
        method.after_step(progress)
        before = dict(method.teacher.network.named_parameters())[name].clone()
        torch.testing.assert_close(before, expected)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_property_10_who_sees_the_small_views(role: Any) -> None:
    method, batch = tiny_mmc(multicrop_role=role), tiny_batch(3)
    views = {"student": 0, "teacher": 0}

    def counting(name: str, backbone: Backbone) -> None:
        def count(module: object, inputs: tuple[Tensor, ...], output: object) -> None:
            views[name] += len(inputs[0]) // 3

        backbone.vit.patch_embed.proj.register_forward_hook(count)

    counting("student", method.student.backbone)
    counting("teacher", method.teacher.network.backbone)
    method(batch, START)
    assert views == {role: 4, ({"student", "teacher"} - {role}).pop(): 2}


def test_property_10_without_small_views_both_roles_are_one() -> None:
    batch = tiny_batch(3, views=TWO_VIEWS)
    one, two = (tiny_mmc(multicrop_role=role)(batch, START).total for role in ("student", "teacher"))
    assert torch.equal(one, two)


def test_property_11_larger_head_outputs_change_neither_contrast() -> None:
    method, batch = tiny_mmc(head_norm="none").eval(), tiny_batch(3)
    before = method(batch, START).terms
    for head in (*method.student.heads.values(), *method.teacher.network.heads.values()):
        last: Any = head[-1]  # type: ignore[index]
        with torch.no_grad():
            last.weight *= 10
            last.bias *= 10
    after = method(batch, START).terms
    for name in ("cls", "pat"):
        torch.testing.assert_close(after[name], before[name])


# Switches


@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
)
@pytest.mark.parametrize("train", ["all", "adapters"])
def test_what_has_no_weight_is_not_there_and_leaves_the_other_terms_as_they_are(
    weights: tuple[float, float, float], train: str
) -> None:
    names = ("rec", "cls", "pat")
    batch = tiny_batch(3)
    method = tiny_mmc(train, **{f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)})
    found = method(batch, START)
    wanted = {name for name, weight in zip(names, weights, strict=True) if weight}
    assert found.terms.keys() == wanted
    assert set(method.student.heads) == {{"cls": "cls", "pat": "patch"}[n] for n in wanted - {"rec"}}
    assert (method.pixel_head is None) == ("rec" not in wanted)
    found.total.backward()
    for label, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, label


def test_weights_multiply_the_terms() -> None:
    found = tiny_mmc(rec_weight=2.0, cls_weight=3.0, pat_weight=0.5)(tiny_batch(3), START)
    expected = 2 * found.terms["rec"] + 3 * found.terms["cls"] + 0.5 * found.terms["pat"]
    torch.testing.assert_close(found.total.detach(), expected)


def test_the_factor_two_tau_is_on_both_contrasts_alone() -> None:
    batch = tiny_batch(3)
    plain, scaled = tiny_mmc()(batch, START).terms, tiny_mmc(scale_2tau=True)(batch, START).terms
    assert float(scaled["cls"]) == pytest.approx(0.4 * float(plain["cls"]), rel=1e-5)
    assert float(scaled["pat"]) == pytest.approx(0.4 * float(plain["pat"]), rel=1e-5)
    assert torch.equal(scaled["rec"], plain["rec"])


@pytest.mark.parametrize(
    "options",
    [
        {"cls_pairs": "same"},
        {"patch_negatives": "other_images_same_position"},
        {"masked_only": True},
        {"max_negatives": 7},
        {"rec_norm": "all"},
        {"fill": "self"},
        {"head_norm": "ln"},
        {"head_layers": 2},
        {"align_px": 4},
        {"replace_p": 1.0},
    ],
)
def test_every_switch_changes_the_loss_and_leaves_it_trainable(options: dict[str, Any]) -> None:
    batch = tiny_batch(3)
    method = tiny_mmc(**options)
    found = method(batch, START)
    found.total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.student.parameters())
    assert float(found.total.detach()) != float(tiny_mmc()(batch, START).total.detach())


def test_only_corrupted_patches_are_contrasted_if_asked() -> None:
    """With noise everywhere but for some patches, these have no gradient of L_PAT at the head."""
    method, batch = tiny_mmc(masked_only=True, rec_weight=0.0, cls_weight=0.0, head_norm="ln"), tiny_batch(3)
    kept: list[Tensor] = []
    rows = method.student.rows

    def watched(level: Any, tokens: Tensor) -> Tensor:
        out: Tensor = rows(level, tokens)
        out.retain_grad()
        kept.append(out)
        return out

    method.student.rows = watched  # type: ignore[method-assign]
    method(batch, START).total.backward()
    assert kept[0].grad is not None
    moved = kept[0].grad.abs().sum(dim=-1) > 0
    hidden = corrupt_views(method.config, batch.global_views.pixels, 8, START).cells.flatten(2)
    assert torch.equal(moved, hidden)


def test_a_step_repeats_itself_and_the_next_one_is_corrupted_anew() -> None:
    method, batch = tiny_mmc(), tiny_batch(3)
    first = method(batch, START)
    assert torch.equal(first.total, method(batch, START).total)
    assert not torch.equal(first.total, method(batch, Progress(1, 10)).total)
    assert 0.3 <= float(first.stats["coverage"]) < 0.9 and 0 <= float(first.stats["replaced"]) <= 1
    assert {"accuracy_cls", "accuracy_pat", "momentum"} <= first.stats.keys()


def test_the_student_is_exported_if_asked() -> None:
    method = tiny_mmc(export="student")
    assert method.exported() is method.student.backbone
    assert tiny_mmc().exported() is not method.student.backbone


def test_wrong_requests_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"all 0, so there is no loss; raise one of them"):
        MmcOptions(rec_weight=0.0, cls_weight=0.0, pat_weight=0.0)
    with pytest.raises(ValueError, match=r"noise_area is a smallest and a largest share in \(0, 1\); got 0\.8 0\.7"):
        MmcOptions(noise_area=(0.8, 0.7))
    with pytest.raises(ValueError, match="one per image, so leave it out"):
        MmcOptions(max_negatives=3, patch_negatives="other_images_same_position")
    with pytest.raises(RequestError, match="compares the images of a step"):
        tiny_mmc()(tiny_batch(1), START)


def test_gathered_images_stand_in_the_step_where_their_slot_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 0 has the slots 0 and 2, process 1 has 1 and 3; each slot holds two images."""
    assert places_in_step(Progress(0, 10, num_slots=4), 8).tolist() == list(range(8))
    monkeypatch.setattr(mmc_module, "world_size", lambda: 2)
    assert places_in_step(Progress(0, 10, num_slots=4), 8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("drawn", [None, 4])
def test_one_image_in_a_process_has_no_patches_to_be_told_from_unless_they_are_gathered(
    drawn: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_step, "world_size", lambda: 2)
    method = tiny_mmc(gather_patches=False, max_negatives=drawn, replace_p=0.0, head_norm="ln")
    with pytest.raises(RequestError, match=r"--mmc.gather-patches off.* use fewer --devices"):
        method(tiny_batch(1), START)
