# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.flsl import Flsl, FlslOptions
from rekindle.objectives import plain
from rekindle.objectives.soft_clustering import mean_shift_error, soft_read, volume
from rekindle.pretraining.options import resolve
from rekindle.views.crops import UniformStream, sample_boxes
from tests.methods.scene import ARCH, SMALL_HEAD, tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_flsl(train: str = "adapters", *, arch: str = ARCH, **options: Any) -> Flsl:
    with seeded_default(0, "method"):
        return Flsl(
            FlslOptions(**{**SMALL_HEAD, "window": 2, "local_window": 1, **options}), tiny_backbone(train, arch=arch)
        )


@torch.no_grad()
def test_the_three_terms_are_the_plain_equations_token_by_token() -> None:
    """Section 8.4 of the GLARE specification."""
    method, batch = tiny_flsl().eval(), tiny_batch(3)
    assert batch.local_views is not None
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    views = [(batch.global_views.pixels[1], [0, 2, 8, 10])] + [(v, [0, 1, 2, 3]) for v in batch.local_views.pixels]
    shift, cross, assigned = [], [], []
    for image in range(3):
        memory = teacher.backbone(batch.global_views.pixels[0, image : image + 1]).patches.flatten(1, 2)[0]
        for pixels, queries in views:
            tokens = student.backbone(pixels[image : image + 1]).patches.flatten(1, 2)[0]
            for i in queries:
                mean = plain.mean_shift(tokens[i], tokens, temperature=0.1)
                there = plain.mean_shift(tokens[i], memory, temperature=0.2)
                shift.append(plain.mean_shift_error(tokens[i], mean))
                logits, target = student.head(mean), (teacher.head(there) / 0.04).softmax(dim=-1)
                cross.append(plain.row_cross_entropy(logits, target, temperature=0.1))
                assigned.append((logits / 0.1).softmax(dim=-1))
    expected = {
        "ms": float(torch.stack(shift).mean()),
        "km": float(torch.stack(cross).mean()),
        "vmr": float(plain.mean_negative_entropy(torch.stack(assigned))) + math.log(32),
    }
    for name, value in expected.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-3, abs=1e-6), name
    total = 0.03 * expected["ms"] + expected["km"] + 5 * expected["vmr"]
    assert float(found.total) == pytest.approx(total, rel=1e-4)


def test_limits_of_the_terms() -> None:
    """S32."""
    same = torch.randn(1, 1, 8).expand(1, 5, 8)
    torch.testing.assert_close(mean_shift_error(same, soft_read(same, same, temperature=0.1)), torch.zeros(1, 5))
    tokens = torch.randn(3, 20, 8)
    error = mean_shift_error(tokens, soft_read(tokens, tokens, temperature=0.1))
    assert 0 <= float(error.min()) and float(error.max()) <= 4
    assert float(volume(torch.full((16,), 1 / 16))) == pytest.approx(0.0, abs=1e-6)
    assert float(volume(torch.eye(16)[3])) == pytest.approx(math.log(16))


def test_class_tokens_take_no_part_and_a_backbone_without_one_trains() -> None:
    method = tiny_flsl("all", arch=f"{ARCH},class_token=false")
    found = method(tiny_batch(), START)
    found.total.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_a_sharper_reading_of_the_own_view_is_refused() -> None:
    with pytest.raises(ValidationError, match="collapses the tokens"):
        FlslOptions(shift_temperature=0.3)


def test_its_views_lie_inside_the_teachers_crop_and_are_not_mirrored() -> None:
    views = resolve({}, {"method": "flsl"}).options.views
    assert views.hflip_p == 0.0 and views.num_local == 2
    areas = []
    for seed in range(200):
        outer, *inner = sample_boxes((300, 400), views, UniformStream(torch.Generator().manual_seed(seed)))
        assert 0.78 < outer.height * outer.width / 120_000 <= 1.0
        for box in inner:
            assert outer.top <= box.top and box.top + box.height <= outer.top + outer.height
            assert outer.left <= box.left and box.left + box.width <= outer.left + outer.width
        areas.append([box.height * box.width / (outer.height * outer.width) for box in inner])
    low, high = torch.tensor(areas).aminmax(dim=0)
    assert 0.48 < float(low[0]) < 0.55 and float(high[0]) <= 1.0
    assert float(low[1:].min()) < 0.08 and 0.35 < float(high[1:].max()) < 0.42


def test_the_method_sets_its_views_and_what_is_asked_for_wins() -> None:
    resolved = resolve({}, {"method": "flsl", "views": {"num_local": 5}})
    assert resolved.options.views.num_local == 5 and resolved.sources["views.num_local"] == "asked"
    assert resolved.sources["views.nested"] == "method" and resolved.sources["views.grey_p"] == "default"
