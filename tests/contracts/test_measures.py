# SPDX-License-Identifier: Apache-2.0
"""Every method's step with all measures against cost, and the same with none of them: equal terms, equal gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.adapters.uniadapter import UniAdapter
from rekindle.core.progress import Progress
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.methods.glare import Glare
from rekindle.networks.backbone import Backbone
from rekindle.networks.stochastic_depth import BranchPath
from tests.bench.measures_off import kept_logits, one_graph
from tests.contracts.test_methods import TRAIN, build
from tests.methods.scene import assert_same_gradients, tiny_batch

VARIANTS: list[dict[str, object]] = [
    {},
    {"distortion": "mask"},
    {"student_input": "two_pass"},
    {"region_target": "eq6", "region_source": "student"},
    {"attention_source": "base"},
]


def _plain_branch(x: Tensor, branch: Callable[[Tensor], Tensor], path: BranchPath | None) -> Tensor:
    return x + branch(x) if path is None else x + path.factor * branch(x)


def _prefix(self: Backbone, pixels: Tensor) -> Tensor:
    tokens = self(pixels)
    prefix: Tensor = torch.cat([tokens.class_token[:, None], tokens.registers], dim=1)
    return prefix


def _take_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in one graph, whole last blocks, autograd's own way back through branches, adapters, attention and heads."""
    for label, module in list(sys.modules.items()):
        if label.startswith("rekindle.methods.") and hasattr(module, "gradient_in_advance"):
            monkeypatch.setattr(module, "gradient_in_advance", one_graph)
    monkeypatch.setattr("rekindle.methods.shared.distillation.prototype_cross_entropy", kept_logits)
    monkeypatch.setattr("rekindle.adapters.uniadapter.onto_stream", _plain_branch)
    monkeypatch.setattr("rekindle.networks.blocks.attend", lambda attn, y, mask=None: attn(y, attn_mask=mask))
    monkeypatch.setattr("rekindle.networks.parts.heads._unit_rows", lambda x: F.normalize(x, dim=-1))
    monkeypatch.setattr(UniAdapter, "_is_plain", lambda self, x: False)
    monkeypatch.setattr(Backbone, "class_token", lambda self, pixels: self(pixels).class_token)
    monkeypatch.setattr(Backbone, "prefix_tokens", _prefix)


def _step(
    name: str, train: str, *, skip: bool, blocks: int | None = None, **options: object
) -> tuple[Method, dict[str, Tensor]]:
    method = build(name, train, blocks=blocks, options=options)
    method = method.double()  # in float32 the gradients of small batches lose digits in either form
    draw = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        if parameter.requires_grad:  # so that nothing is zero, or equal, by accident
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    for backbone in (m for m in method.modules() if isinstance(m, Backbone)):
        backbone.set_drop_path(0.4)
        backbone.skip_dropped = skip
    torch.manual_seed(0)
    found: Any = method(tiny_batch(4), Progress(0, 10, seed=3))
    found.total.backward()
    return method, found.terms


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_equals_the_one_without_any_measure(name: str, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, terms = _step(name, train, skip=True)
    _take_the_long_way(monkeypatch)
    plain, expected = _step(name, train, skip=False)
    assert terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value.detach(), rtol=1e-6, atol=1e-8, msg=term)
    assert assert_same_gradients(ours, plain, atol=1e-6) >= 5


@pytest.mark.parametrize(
    "name, options",
    [(name, {}) for name in METHODS] + [("glare", options) for options in VARIANTS[1:]],
    ids=str,
)
def test_what_the_stem_computed_once_is_what_each_would_compute(
    name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, terms = _step(name, "adapters", skip=True, blocks=1, **options)
    stems = {backbone.stem_depth for backbone in ours.modules() if isinstance(backbone, Backbone)}
    assert 1 in stems  # one of two blocks
    _take_the_long_way(monkeypatch)
    monkeypatch.setattr(Backbone, "shared", lambda self, pixels: pixels)
    plain, expected = _step(name, "adapters", skip=False, blocks=1, **options)
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value.detach(), rtol=1e-6, atol=1e-8, msg=term)
    assert assert_same_gradients(ours, plain, atol=1e-6) >= 4


@pytest.mark.parametrize("name", ["dino", "glare"])
def test_the_stem_is_computed_once_for_what_student_and_teacher_both_see(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build(name, "adapters", blocks=1, options={"distortion_ratio": "ibot"}), tiny_batch(4)
    stem, seen = Backbone.stem, []

    def counted(self: Backbone, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixels))
        return stem(self, pixels, *args, **kwargs)

    monkeypatch.setattr(Backbone, "stem", counted)
    hit = 0
    if isinstance(method, Glare):
        hit = int(method.draw_hit(batch, (4, 4), Progress(0, 10, seed=3)).flatten(1).any(1).sum())
    method(batch, Progress(0, 10, seed=3))
    assert batch.local_views is not None
    small = batch.local_views.pixels.flatten(0, 1)
    assert sum(seen) == 8 + hit + len(small)
    assert hit < 8
