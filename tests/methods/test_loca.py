# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.loca import Loca
from rekindle.methods.loca_matching import kept_with
from rekindle.methods.loca_options import LocaOptions
from rekindle.networks.parts.locator import Locator
from rekindle.networks.parts.query_block import QueryBlock
from rekindle.objectives import plain
from rekindle.objectives.assignment import sinkhorn
from rekindle.objectives.location import box_error
from rekindle.views.batch import ViewBatch
from rekindle.views.token_masks import draw_kept
from rekindle.views.tracking import track_patches
from tests.methods.scene import ARCH, SMALL_HEAD, tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_loca(train: str = "adapters", *, arch: str = ARCH, **options: Any) -> Loca:
    with seeded_default(0, "method"):
        backbone = tiny_backbone(train, arch=arch)
        return Loca(LocaOptions(**{**SMALL_HEAD, "mask_ratio": 0.5, **options}), backbone)


def queries_of(method: Loca, batch: ViewBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(tokens [Q, D], index, valid) of each query of each image, query by query."""
    assert batch.local_views is not None
    backbone, reference = method.student.backbone, batch.global_views.crops[0]
    keep = draw_kept(START, len(batch), (4, 4), 5, purpose="large query")
    found = []
    for view, (pixels, crops, grid) in enumerate(
        [(batch.global_views.pixels[1], batch.global_views.crops[1], (4, 4))]
        + [(p, batch.local_views.crops[i], (2, 2)) for i, p in enumerate(batch.local_views.pixels)]
    ):
        for image in range(len(batch)):
            one = slice(image, image + 1)
            tracked = track_patches(
                reference[one], crops[one], reference_grid=(4, 4), query_size_px=pixels.shape[-1], query_grid=grid
            )
            index, valid = tracked.index[0], tracked.valid[0]
            if view == 0:
                tokens = backbone.visible_tokens(pixels[one], keep[one])[0, backbone.num_prefix :]
                index, valid = index[keep[image]], valid[keep[image]]
            else:
                tokens = backbone(pixels[one]).patches.flatten(1, 2)[0]
            found.append((tokens, index, valid))
    return found


@torch.no_grad()
def test_the_three_terms_are_the_plain_equations() -> None:
    """Sections 6 to 9 of the specification: one query of one image at a time."""
    method, batch = tiny_loca(query_keep=0.36).eval(), tiny_batch(3)
    found = method(batch, START)
    assert method.student.locate is not None
    reference = [
        method.teacher.network.backbone(p[None]).patches.flatten(1, 2)[0] for p in batch.global_views.pixels[0]
    ]
    visible = draw_kept(START, 1, (4, 4), 8, shape="structured", purpose="visible reference")[0]
    scores = torch.cat([method.teacher.network.head(r) for r in reference])
    targets = (scores / 0.05).softmax(dim=-1)
    for _ in range(3):
        targets = targets / targets.sum(dim=0)
        targets = targets / targets.sum(dim=1, keepdim=True)
    places, wanted, scored, target_rows, everything = [], [], [], [], []
    for number, (tokens, index, valid) in enumerate(queries_of(method, batch)):
        image = number % 3
        logits = method.student.locate(tokens[None], reference[image][visible][None])[0]
        everything.append(method.student.head(tokens))
        places.append(logits[valid])
        wanted.append(index[valid])
        scored.append(everything[-1][valid])
        target_rows.append(targets[image * 16 + index[valid]])
    logits, place = torch.cat(places), torch.cat(wanted)
    entropies = plain.row_cross_entropy(torch.cat(scored), torch.cat(target_rows), temperature=0.1)
    expected = {
        "position": plain.position_cross_entropy(logits, place),
        "cluster": entropies.mean(),
        "memax": plain.mean_negative_entropy((torch.cat(everything) / 0.1).softmax(dim=-1)),
    }
    assert 20 < len(place) < 3 * (5 + 8)
    for name, value in expected.items():
        assert float(found.terms[name]) == pytest.approx(float(value), rel=1e-4), name
    assert float(found.stats["position_accuracy"]) == pytest.approx(
        float((logits.argmax(dim=-1) == place).float().mean())
    )
    assert float(found.total) == pytest.approx(sum(float(v) for v in found.terms.values()), rel=1e-5)


def test_sinkhorn_gives_the_worked_matrix() -> None:
    """Property 8."""
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    expected = torch.tensor(
        [[0.5288, 0.3448, 0.1265], [0.4132, 0.4715, 0.1153], [0.3358, 0.3832, 0.2811], [0.0600, 0.1369, 0.8032]]
    )
    torch.testing.assert_close(sinkhorn(rows.log(), temperature=1.0, iterations=3), expected, atol=1e-4, rtol=0)


def test_the_papers_sizes() -> None:
    assert sum(p.numel() for p in QueryBlock(768, 12).parameters()) == 7_089_408
    classifier = Locator(768, 12, 196, box=False).predict
    assert sum(p.numel() for p in classifier.parameters()) == 150_724


def test_invisible_reference_patches_do_not_matter_and_visible_ones_do() -> None:
    """Property 12."""
    locate, tokens = Locator(32, 2, 16, box=False).eval(), torch.randn(1, 5, 32)
    reference = torch.randn(1, 16, 32)
    keep = draw_kept(START, 1, (4, 4), 6, shape="structured", purpose="p")[0]
    plain = locate(tokens, reference[:, keep])
    hidden = reference.clone()
    hidden[:, [i for i in range(16) if i not in keep.tolist()]] += torch.randn(32)
    assert torch.equal(locate(tokens, hidden[:, keep]), plain)
    seen = reference.clone()
    seen[:, keep[2]] += torch.randn(32)
    assert not torch.allclose(locate(tokens, seen[:, keep]), plain)
    alone = locate(tokens, reference[:, :0])  # eta = 1: nothing to read
    torch.testing.assert_close(alone, locate(tokens, torch.randn(1, 0, 32)))


@pytest.mark.parametrize("shape", ["structured", "first", "unstructured", "structured2d"])
@pytest.mark.parametrize("shared", [True, False])
def test_kept_patches_are_what_their_shape_says(shape: Any, shared: bool) -> None:
    kept = draw_kept(START, 50, (14, 14), 39, shape=shape, shared=shared, purpose="p")
    assert kept.shape == (50, 36 if shape == "structured2d" else 39)
    assert bool((kept.diff(dim=1) > 0).all()) and int(kept.min()) >= 0 and int(kept.max()) < 196
    assert (len({tuple(r.tolist()) for r in kept}) == 1) == (shared or shape == "first")
    if shape == "structured":
        assert bool((kept.diff(dim=1) == 1).all()) and int(kept[:, 0].max()) <= 157
    if shape == "first":
        assert kept[0].tolist() == list(range(39))
    if shape == "structured2d":
        rows, columns = kept // 14, kept % 14
        assert bool((rows.amax(1) - rows.amin(1) == 5).all()) and bool((columns.amax(1) - columns.amin(1) == 5).all())
    with pytest.raises(ValueError, match="5 patches cannot be kept of 4"):
        draw_kept(START, 1, (2, 2), 5, purpose="p")


def test_gradients_take_the_routes_of_the_paper() -> None:
    """Property 13: the reference branch has none with clusters, and one without."""
    for weight in (1.0, 0.0):
        method, batch = tiny_loca("all", cluster_weight=weight), tiny_batch(2)
        pixels = batch.global_views.pixels.clone().requires_grad_()
        views = type(batch.global_views)(pixels, batch.global_views.crops)
        method(ViewBatch(views, batch.local_views, batch.image_index), START).total.backward()
        assert pixels.grad is not None
        assert bool(pixels.grad[0].any()) == (weight == 0.0)
        assert bool(pixels.grad[1].any())
        positions = method.student.backbone.vit.pos_embed.grad
        assert positions is not None and bool(positions.any())
        assert all(not p.requires_grad for p in method.teacher.parameters())


def test_without_positions_a_shuffled_query_has_shuffled_tokens() -> None:
    """A11: queries of position-only runs do not know where their patches lie."""
    backbone = tiny_backbone("all").eval()
    pixels, order = torch.randn(1, 3, 32, 32), torch.randperm(16)
    patches = pixels.view(1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches[:, order].view(1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 32, 32)
    with torch.no_grad():
        plain = backbone(pixels, positions=False).patches.flatten(1, 2)
        torch.testing.assert_close(
            backbone(moved, positions=False).patches.flatten(1, 2), plain[:, order], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_in_a_single_view_the_context_does_not_know_the_other_patches_and_nobody_knows_places() -> None:
    method, batch = tiny_loca("all", cluster_weight=0.0, position_mode="single").eval(), tiny_batch(2)
    pixels = batch.global_views.pixels[0]
    keep = draw_kept(START, 2, (4, 4), 8, shape="structured", purpose="visible reference")
    unread = torch.ones(2, 16, dtype=torch.bool).scatter_(1, keep, False).view(2, 4, 4)
    plain = method.student.backbone(pixels, positions=False, unread=unread).patches.flatten(1, 2)
    noise = torch.randn_like(pixels) * unread[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = method.student.backbone(pixels + noise, positions=False, unread=unread).patches.flatten(1, 2)
    assert torch.equal(other[~unread.flatten(1)], plain[~unread.flatten(1)])
    assert not torch.allclose(other[unread.flatten(1)], plain[unread.flatten(1)])
    assert method.student.locate is not None
    expected = F.cross_entropy(method.student.locate(plain, plain[:, :0]).flatten(0, 1), torch.arange(16).repeat(2))
    torch.testing.assert_close(method(batch, START).total, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"position_target": "central"},
        {"position_target": "box"},
        {"cluster_level": "image_cls"},
        {"cluster_level": "image_gap"},
        {"sinkhorn": False, "memax_weight": 0.0},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.0},
        {"mask_shape": "structured2d", "shared_masks": False},
        {"position_weight": 0.0},
        {"cluster_weight": 0.0},
        {"cluster_weight": 0.0, "mask_ratio": 0.9},
        {"cluster_weight": 0.0, "mask_ratio": 1.0},
        {"cluster_weight": 0.0, "position_mode": "single"},
    ],
    ids=str,
)
def test_every_variant_trains_all_its_parameters(options: dict[str, Any]) -> None:
    method, batch = tiny_loca("all", **options), tiny_batch(4)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        found = method(batch, START)
        found.total.backward()
        optimizer.step()
        losses.append(float(found.total.detach()))
    untouched = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched
    if (
        method.student.locate is not None and method.student.locate.block is not None
    ):  # with nothing to read, what reads is frozen
        assert method.student.locate.block.query.weight.requires_grad == (options.get("mask_ratio") != 1.0)
    assert losses[-1] < losses[0]


def test_queries_that_never_meet_the_reference_give_zero_and_no_gradient() -> None:
    """Property 5."""
    method, batch = tiny_loca("all", cluster_weight=0.0), tiny_batch(2)
    crops = batch.global_views.crops
    apart = type(crops)(*(getattr(crops, n).clone() for n in crops.__dataclass_fields__))
    for start, extent in ((apart.top, apart.height), (apart.left, apart.width)):
        start[0], extent[0], start[1], extent[1] = 0.0, 0.3, 0.6, 0.3
    views = type(batch.global_views)(batch.global_views.pixels, apart)
    found = method(ViewBatch(views, None, batch.image_index), START)
    found.total.backward()
    assert float(found.total.detach()) == 0.0 and float(found.stats["matched"]) == 0.0
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


def test_box_error_is_zero_for_the_box_itself_and_detrs_otherwise() -> None:
    """Property 23: GIoU of (0, 0, 2, 2) and (1, 1, 3, 3) is -0.0794."""
    box = torch.tensor([[0.2, 0.3, 0.4, 0.2]])  # y, x, h, w
    own = torch.tensor([[0.4, 0.4, 0.2, 0.4]])  # cx, cy, w, h
    torch.testing.assert_close(box_error(own, box), torch.zeros(1), atol=1e-5, rtol=0)
    scaled = torch.tensor([[1 / 4, 1 / 4, 1 / 2, 1 / 2]])  # of (0, 0, 2, 2) in a unit of 4
    other = torch.tensor([[1 / 4, 1 / 4, 1 / 2, 1 / 2]])  # (1, 1, 3, 3) as y, x, h, w
    torch.testing.assert_close(box_error(scaled, other), torch.tensor([5 * 0.5 + 2 * 1.0794]), atol=1e-3, rtol=0)


def test_a_perfect_and_a_uniform_locator_have_the_known_losses() -> None:
    """Property 10, and 9 for the entropy: zero weights give uniform answers."""
    method, batch = tiny_loca(), tiny_batch(2)
    assert method.student.locate is not None
    for parameter in (*method.student.locate.predict.parameters(), *method.student.head.mlp.parameters()):
        torch.nn.init.zeros_(parameter)
    found = method(batch, START)
    assert float(found.terms["position"]) == pytest.approx(math.log(16), rel=1e-5)
    assert float(found.terms["memax"]) == pytest.approx(-math.log(32), rel=1e-5)


def test_the_central_patch_is_kept_once_and_first() -> None:
    kept = kept_with(torch.tensor([[0, 3, 7], [1, 2, 4]]), 3)
    assert kept.tolist() == [[3, 0, 7], [3, 1, 2]]


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ValidationError, match="so there is no loss"):
        LocaOptions(position_weight=0, cluster_weight=0)
    with pytest.raises(ValidationError, match="set cluster_weight = 0 and position_target = all"):
        LocaOptions(position_mode="single")
    with pytest.raises(RequestError, match="image_cls needs a class token"):
        tiny_loca(arch=f"{ARCH},class_token=false", cluster_level="image_cls")
    with pytest.raises(
        RequestError, match=r"4 x 4 patches and the classifier 7 x 7 places; set --loca\.reference-grid 4"
    ):
        tiny_loca(reference_grid=7)(tiny_batch(), START)


def test_the_options_follow_the_views() -> None:
    fitted = Loca.fitted(LocaOptions(), (9, 9))
    assert isinstance(fitted, LocaOptions) and fitted.reference_grid == 9
    kept = Loca.fitted(LocaOptions(reference_grid=5), (9, 9))
    assert isinstance(kept, LocaOptions) and kept.reference_grid == 5
