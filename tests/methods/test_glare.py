# SPDX-License-Identifier: Apache-2.0
"""GLARE against a slow reference written as the paper's sums, and the properties of section 11 of its specification."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown
from rekindle.methods.glare import Glare
from rekindle.methods.glare_matching import take_patches
from rekindle.methods.glare_options import GlareOptions
from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.geometry import match_patches
from tests.methods.scene import tiny_batch, tiny_glare

START = Progress(0, 10, seed=3)


def _moved(method: Glare, seed: int = 1) -> Glare:
    """Give student and teacher different weights, so that nothing is equal by accident."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in method.parameters():
        moves = parameter.requires_grad or any(parameter is p for p in method.teacher.averaged_parameters())
        if moves:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    for level in method.centres:
        _value(method, level).normal_(generator=draw)
    return method.eval()


def _value(method: Glare, level: str) -> Tensor:
    value = method.centres[level].value
    assert isinstance(value, Tensor)
    return value


def _grads(method: Glare, batch: ViewBatch) -> set[str]:
    method(batch, START).total.backward()
    return {n for n, p in method.named_parameters() if p.grad is not None}


# The reference: the paper's sums, one image and one patch at a time


def _softmax_target(method: Glare, logits: Tensor, level: str) -> Tensor:
    return ((logits - _value(method, level)) / 0.04).softmax(-1)


def _h(student: Tensor, target: Tensor) -> Tensor:
    return -(target * (student / 0.1).log_softmax(-1)).sum()


@torch.no_grad()
def _reference(method: Glare, batch: ViewBatch) -> dict[str, float]:
    net, teacher = method.student, method.teacher.network
    clean = batch.global_views.pixels.flatten(0, 1)
    size = len(batch)
    hit = method.draw_hit(batch, (4, 4), START)
    seen = method.student_pass(clean, hit, START)
    target = teacher.backbone(clean, cls_attention=True)
    e, t = seen.patches.flatten(1, 2), target.patches.flatten(1, 2)
    regions = method.draw_regions(clean, target, START)
    assert net.attention is not None and teacher.attention is not None
    loc1: list[float] = []
    loc2: list[float] = []
    reg: list[float] = []
    crops = batch.global_views.crops.flatten()
    for row in range(2 * size):
        other = (row + size) % (2 * size)
        match = match_patches(crops[row : row + 1], crops[other : other + 1], (4, 4), (4, 4))
        masked = [n for n in range(16) if hit[row].flatten()[n]]
        values = [
            float(_h(net.head(e[row, n]), _softmax_target(method, teacher.head(t[row, n]), "patch"))) for n in masked
        ]
        loc1.append(sum(values) / len(values) if values else 0.0)
        for s in range(16):
            partners = [p for p in range(16) if match.relation[0, s, p]]
            if partners:
                each = [
                    float(_h(net.head(e[row, s]), _softmax_target(method, teacher.head(t[other, p]), "patch")))
                    for p in partners
                ]
                loc2.append(sum(each) / len(each))
        for m in range(regions.shape[1]):
            inside = [n for n in range(16) if regions[row, m, n]]
            partner = sorted({p for s in inside for p in range(16) if match.relation[0, s, p]})
            rows = []
            for s in inside:
                if not bool(match.valid[0, s]):
                    continue
                z_s = net.attention(e[row, s][None, None], e[row][None])[0, 0]
                query = t[other, int(match.nearest[0, s])]
                z_t = teacher.attention(query[None, None], t[other][partner][None])[0, 0]
                rows.append(float(_h(net.head(z_s), _softmax_target(method, teacher.head(z_t), "region"))))
            if rows:
                reg.append(sum(rows) / len(rows))
    cls = [torch.stack(seen.class_token.chunk(2))]
    assert batch.local_views is not None
    cls.append(net.backbone(batch.local_views.pixels.flatten(0, 1)).class_token.unflatten(0, (2, size)))
    views = torch.cat(cls)
    goal = target.class_token.unflatten(0, (2, size))
    glob = [
        float(_h(net.head(views[v, b]), _softmax_target(method, teacher.head(goal[q, b]), "cls")))
        for q in range(2)
        for v in range(4)
        if v != q
        for b in range(size)
    ]
    return {
        "glob": sum(glob) / len(glob),
        "reg": sum(reg) / len(reg),
        "loc1": sum(loc1) / len(loc1),
        "loc2": sum(loc2) / len(loc2),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_all_four_terms_equal_the_papers_sums_by_loops(seed: int) -> None:
    """S10, S18, S19, S24-S27: every batched term against one patch at a time."""
    method, batch = _moved(tiny_glare(), seed), tiny_batch(seed=seed)
    with torch.no_grad():
        found = method(batch, START).terms
    expected = _reference(method, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


def test_uniform_teacher_and_student_give_log_k_on_every_term() -> None:
    """S9. In loc1 every view has masked patches, because the ratio is fixed."""
    method = tiny_glare(distortion_ratio="fixed").eval()
    for head in (method.student.head, method.teacher.network.head):
        head.last_layer.parametrizations.weight.original0.data.zero_()
    terms = method(tiny_batch(), START).terms
    for name, value in terms.items():
        assert float(value) == pytest.approx(math.log(32), rel=1e-5), name


def test_loc1_counts_views_without_masked_patches_in_its_denominator() -> None:
    """S9, S19: with uniform outputs the term is log K times the share of views that have masked patches."""
    method = tiny_glare().eval()
    for head in (method.student.head, method.teacher.network.head):
        head.last_layer.parametrizations.weight.original0.data.zero_()
    batch = tiny_batch(6)
    hit = method.draw_hit(batch, (4, 4), START).flatten(1).any(-1).float().mean()
    assert 0.0 < float(hit) < 1.0
    assert float(method(batch, START).terms["loc1"]) == pytest.approx(math.log(32) * float(hit), rel=1e-5)


def test_loc1_ignores_the_students_outputs_at_patches_that_are_not_masked() -> None:
    method, batch = _moved(tiny_glare(distortion_ratio="fixed", regional_weight=0.0, global_weight=0.0)), tiny_batch()
    clean = batch.global_views.pixels.flatten(0, 1)
    hit = method.draw_hit(batch, (4, 4), START)
    tokens = method.student_pass(clean, hit, START)

    def term(patches: Tensor) -> float:
        method.student_pass = lambda *_: replace(tokens, patches=patches)  # type: ignore[method-assign]
        return float(method(batch, START).terms["loc1"])

    patches = tokens.patches.detach()
    elsewhere = torch.where(hit[..., None], patches, torch.randn_like(patches))
    here = torch.where(hit[..., None], torch.randn_like(patches), patches)
    assert term(patches) == pytest.approx(term(elsewhere), rel=1e-6)
    assert term(patches) != pytest.approx(term(here), rel=1e-3)


def test_crops_that_do_not_overlap_give_zero_patch_terms_zero_gradient_and_no_nan() -> None:
    """S13, S27."""
    batch = tiny_batch()
    half = torch.full((2, 3), 0.5)
    left = torch.tensor([[0.0] * 3, [0.5] * 3])
    no = torch.zeros(2, 3, dtype=torch.bool)
    crops = Crops(torch.zeros(2, 3), left, torch.ones(2, 3), half - 1e-3, no, no, *[torch.full((2, 3), 60.0)] * 2)
    apart = ViewBatch(Views(batch.global_views.pixels, crops), batch.local_views, batch.image_index)
    method = tiny_glare(global_weight=0.0, distortion="none")
    terms = method(apart, START)
    assert float(terms.terms["loc2"]) == 0.0
    assert float(terms.terms["reg"]) == 0.0
    terms.total.backward()
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            assert float(parameter.grad.abs().max()) == 0.0, name


def test_the_teachers_region_features_do_not_see_tokens_outside_the_region() -> None:
    """S26: keys of the teacher are the region alone; the student's are its whole view."""
    method = _moved(tiny_glare())
    assert method.student.attention is not None and method.teacher.network.attention is not None
    memory, query = torch.randn(1, 16, 32), torch.randn(1, 1, 2, 32)
    inside = torch.zeros(1, 1, 16, dtype=torch.bool)
    inside[..., :5] = True
    altered = torch.where(inside[0, 0, :, None], memory, torch.randn_like(memory))
    teacher, student = method.teacher.network.attention, method.student.attention
    torch.testing.assert_close(
        teacher(query, memory, key_mask=inside), teacher(query, altered, key_mask=inside), atol=1e-6, rtol=1e-5
    )
    assert not torch.allclose(student(query, memory), student(query, altered), atol=1e-3)


def test_only_adapters_head_and_cross_attention_train_and_the_base_never_moves() -> None:
    """S4, S7."""
    method = tiny_glare()
    base = {n: p.clone() for n, p in method.named_parameters() if not p.requires_grad}
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert all(n.startswith("student.") for n in trainable)
    assert all(".adapter." in n or n.startswith(("student.head.", "student.attention.")) for n in trainable)
    assert _grads(method, tiny_batch()) == trainable
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    for step in range(10):
        optimizer.zero_grad()
        method(tiny_batch(seed=step), Progress(step, 10)).total.backward()
        optimizer.step()
        method.after_step(Progress(step, 10))
    frozen = method.frozen_names()
    now = dict(method.named_parameters(remove_duplicate=False))
    assert frozen and not any(".adapter." in name for name in frozen)
    for name, value in base.items():
        if name in frozen:
            assert torch.equal(now[name], value), name
            assert now[name].grad is None


def test_no_gradient_reaches_teacher_centres_or_targets() -> None:
    method = tiny_glare("all")
    _grads(method, tiny_batch())
    for parameter in method.teacher.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not any(b.requires_grad for b in method.buffers())


def test_total_is_the_weighted_sum_and_a_term_of_weight_zero_trains_nothing() -> None:
    """S28."""
    weights: dict[str, Any] = {"global_weight": 2.0, "regional_weight": 3.0, "local_weight": 0.5}
    method, batch = tiny_glare(**weights).eval(), tiny_batch()
    found = method(batch, START)
    t = found.terms
    expected = 2.0 * t["glob"] + 3.0 * t["reg"] + 0.5 * (t["loc1"] + t["loc2"])
    torch.testing.assert_close(found.total.detach(), expected)
    without = tiny_glare(regional_weight=0.0)
    assert without.student.attention is None
    assert "reg" not in without(batch, START).terms
    only_global = tiny_glare(regional_weight=0.0, local_weight=0.0)
    assert set(only_global(batch, START).terms) == {"glob"}


def test_weigh_refuses_terms_without_a_weight() -> None:
    with pytest.raises(ValueError, match="same losses"):
        LossBreakdown.weigh({"a": torch.zeros(())}, {"b": 1.0})


VARIANTS: list[dict[str, Any]] = [
    {"distortion": "mask"},
    {"distortion": "rotate"},
    {"distortion": "noise"},
    {"distortion": "none"},
    {"distortion_shape": "block"},
    {"distortion_ratio": "fixed", "blur_scope": "patch"},
    {"blur_sigma_px": 1.0, "blur_sigma_max_px": 9.0},
    {"student_input": "two_pass"},
    {"correspondence": "center"},
    {"correspondence": "overlap"},
    {"correspondence": "nearest"},
    {"reduction": "sum"},
    {"match_reduction": "sum"},
    {"local_crops_in_loc2": True},
    {"symmetric": False},
    {"balance": "sinkhorn"},
    {"num_centres": 1},
    {"num_centres": 2},
    {"norm_last_layer": True},
    {"num_regions": 1},
    {"num_regions": 5},
    {"region_start": "random", "num_regions": 3},
    {"region_anchor": "clip"},
    {"region_anchor": "center"},
    {"attention_source": "base"},
    {"region_target": "eq6"},
    {"region_target": "eq6", "region_source": "student"},
    {"region_target": "query_R"},
    {"region_target": "query_R", "region_source": "student"},
    {"attention_init": "meanshift"},
    {"attention_residual": True},
    {"attention_prefix": True},
    {"attention_temperature": 0.5},
    {"min_region_patches": 2},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_of_the_register_changes_the_loss_and_can_be_trained(options: dict[str, Any]) -> None:
    batch = tiny_batch(4)
    method, plain = _moved(tiny_glare(**options)), _moved(tiny_glare())
    if "num_centres" in options:  # the random centres of `_moved` differ with their number
        for one in (method, plain):
            for level in one.centres:
                _value(one, level).copy_(torch.arange(32) / 16.0)
            _value(one, "cls").zero_()
        if options["num_centres"] == 2:
            _value(plain, "region").zero_()
    found = method(batch, START)
    found.total.backward()
    assert bool(found.total.isfinite())
    assert float(found.total.detach()) != pytest.approx(float(plain(batch, START).total.detach()), rel=1e-7)
    for name, parameter in method.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_the_mask_variant_never_reads_the_pixels_of_hidden_patches_and_the_blur_variant_does() -> None:
    """S22, through the whole student pass."""
    batch = tiny_batch()
    clean = batch.global_views.pixels.flatten(0, 1)
    for kind, sees in (("mask", False), ("blur", True)):
        method = _moved(tiny_glare(distortion=kind, distortion_ratio="fixed"))
        hit = method.draw_hit(batch, (4, 4), START)
        on_pixels = hit.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        altered = torch.where(on_pixels, torch.randn_like(clean), clean)
        same = torch.allclose(
            method.student_pass(clean, hit, START).patches,
            method.student_pass(altered, hit, START).patches,
            atol=1e-6,
        )
        assert same != sees


def test_reg_does_not_change_when_its_only_region_is_repeated() -> None:
    """S27: one region per view, or the same region twice."""
    method = _moved(tiny_glare(num_regions=1))
    batch = tiny_batch()
    clean = batch.global_views.pixels.flatten(0, 1)
    original = method.draw_regions
    once = float(method(batch, START).terms["reg"])
    method.draw_regions = lambda *args: original(*args).repeat(1, 2, 1)  # type: ignore[method-assign]
    assert float(method(batch, START).terms["reg"]) == pytest.approx(once, rel=1e-5)
    assert original(clean, method.teacher.network.backbone(clean, cls_attention=True), START).shape[1] == 1


def test_a_backbone_without_a_class_token_is_refused_with_the_reason() -> None:
    method = tiny_glare(
        arch="vit:width=32,depth=2,heads=2,patch=8,img=32,class_token=false", region_start="random", num_regions=2
    )
    with pytest.raises(RequestError, match="no class token"):
        method(tiny_batch(), START)


def test_regions_with_crossed_bounds_and_no_loss_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="region_min_patches = 5"):
        GlareOptions(region_min_patches=5, region_max_patches=4)
    with pytest.raises(ValueError, match="all weights are 0"):
        GlareOptions(global_weight=0, regional_weight=0, local_weight=0)


def test_take_patches_gathers_by_row() -> None:
    values = torch.arange(2 * 4 * 3).view(2, 4, 3)
    index = torch.tensor([[[0, 3]], [[2, 1]]])
    found = take_patches(values, index)
    for n in range(2):
        for k in range(2):
            assert torch.equal(found[n, 0, k], values[n, int(index[n, 0, k])])


def test_two_shares_of_a_batch_average_to_the_whole_where_counts_agree() -> None:
    """The random draws of a share are those rows of the whole step's draws."""
    method, batch = _moved(tiny_glare(global_weight=1.0, local_weight=0.0, regional_weight=0.0)), tiny_batch(4)

    def share(slot: int) -> ViewBatch:
        rows = slice(2 * slot, 2 * slot + 2)
        views = [
            Views(v.pixels[:, rows], Crops(*(getattr(v.crops, n)[:, rows] for n in Crops.__dataclass_fields__)))
            for v in (batch.global_views, batch.local_views)
            if v is not None
        ]
        return ViewBatch(views[0], views[1], batch.image_index[rows])

    whole = float(method(batch, Progress(2, 10)).total.detach())
    parts = [float(method(share(s), Progress(2, 10, slot=s, num_slots=2)).total.detach()) for s in range(2)]
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_thirty_steps_lower_every_term_and_entropy_stays_inside_its_bounds() -> None:
    """S31."""
    method, batch = tiny_glare(distortion_ratio="fixed"), tiny_batch(4)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    progress = Progress(5, 100)
    first = method(batch, progress)
    for _ in range(40):
        optimizer.zero_grad()
        method(batch, progress).total.backward()
        optimizer.step()
    last = method(batch, progress)
    for name in first.terms:
        assert float(last.terms[name]) < float(first.terms[name]), name
    for level in ("cls", "patch", "region"):
        assert 0.0 < float(last.stats[f"entropy_{level}"]) < math.log(32)
