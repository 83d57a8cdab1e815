# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.paka import Paka, PakaOptions, grid_points
from rekindle.objectives import plain
from rekindle.objectives.alignment import kernel_alignment
from rekindle.views.batch import ViewBatch
from tests.methods.scene import tiny_backbone, tiny_batch
from tests.views.test_geometry import crop

START = Progress(0, 10)


def tiny_paka(train: str = "adapters", **options: Any) -> Paka:
    with seeded_default(0, "method"):
        return Paka(PakaOptions(**{"sample_grid": 3, **options}), tiny_backbone(train))


def test_alignment_is_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    loss = pytest.importorskip("lightly.loss.patch_kernel_alignment_loss")
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 12, 7)
    theirs = loss.PatchKernelAlignmentLoss()(student, teacher)
    torch.testing.assert_close((1 - kernel_alignment(student, teacher)).mean(), theirs, atol=1e-5, rtol=1e-5)


def test_alignment_is_one_for_rotated_and_scaled_features_and_finite_for_equal_ones() -> None:
    tokens = torch.randn(3, 9, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    torch.testing.assert_close(kernel_alignment(tokens, 3 * tokens @ turn + 1), torch.ones(3, dtype=torch.float64))
    flat = torch.ones(3, 9, 6, requires_grad=True)
    kernel_alignment(flat, tokens.float()).sum().backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_alignment_passes_gradcheck() -> None:
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    given = torch.randn(2, 5, 4, dtype=torch.float64)
    student = tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kernel_alignment(s @ torch.ones(3, 4, dtype=s.dtype), given), (student,))


@torch.no_grad()
def test_the_loss_is_the_mean_of_the_plain_equation_over_pairs_that_share_a_region() -> None:
    method, batch = tiny_paka().eval(), tiny_batch(3)
    assert batch.local_views is not None
    found = method(batch, START)
    views = [(v, batch.global_views, i) for i, v in enumerate(batch.global_views.pixels)]
    views += [(v, batch.local_views, i) for i, v in enumerate(batch.local_views.pixels)]
    losses = []
    for s, (pixels, group, number) in enumerate(views):
        own = method.student(pixels).patches
        for t in range(2):
            given = method.teacher.network(batch.global_views.pixels[t]).patches
            for image in range(3):
                if s == t:
                    continue
                a, b = group.crops[number][image : image + 1], batch.global_views.crops[t][image : image + 1]
                top, left = (max(float(getattr(c, n)) for c in (a, b)) for n in ("top", "left"))
                end_y, end_x = (
                    min(float(getattr(c, n)) + float(getattr(c, e)) for c in (a, b))
                    for n, e in (("top", "height"), ("left", "width"))
                )
                if max(0.0, end_y - top) * max(0.0, end_x - left) < 0.01:
                    continue
                sampled = []
                for tokens, c in ((own, a), (given, b)):
                    rows = []
                    for i in range(3):
                        for j in range(3):
                            y = (top + (i + 0.5) / 3 * (end_y - top) - float(c.top)) / float(c.height)
                            x = (left + (j + 0.5) / 3 * (end_x - left) - float(c.left)) / float(c.width)
                            x = 1 - x if bool(c.flipped) else x
                            grid = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]])
                            image_map = tokens[image].permute(2, 0, 1)[None]
                            rows.append(
                                torch.nn.functional.grid_sample(
                                    image_map, grid, align_corners=False, padding_mode="border"
                                ).flatten()
                            )
                    sampled.append(torch.stack(rows))
                losses.append(float(1 - plain.kernel_alignment(*sampled)))
    assert 6 < len(losses) <= 18
    assert float(found.total) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(found.stats["usable"]) == pytest.approx(len(losses) / 18)


def test_views_that_never_meet_give_zero_and_no_gradient() -> None:
    method, batch = tiny_paka("all"), tiny_batch(1)
    apart = [crop(0, 0, 0.2, 0.2), crop(0.7, 0.7, 0.2, 0.2)]
    crops = type(apart[0]).stack(apart)
    alone = ViewBatch(type(batch.global_views)(batch.global_views.pixels, crops), None, batch.image_index)
    found = method(alone, START)
    found.total.backward()
    assert float(found.total.detach()) == 0.0
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


def test_grid_points_are_the_centres_of_cells() -> None:
    points = grid_points(torch.tensor([[0.2, 0.4, 0.4, 0.2]]), 2)
    expected = torch.tensor([[[0.3, 0.45], [0.3, 0.55], [0.5, 0.45], [0.5, 0.55]]])
    torch.testing.assert_close(points, expected)
