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
from rekindle.networks.backbone import Backbone
from rekindle.networks.stochastic_depth import BranchPath
from tests.bench.measures_off import kept_logits, one_graph
from tests.contracts.test_methods import TRAIN, build
from tests.methods.scene import assert_same_gradients, tiny_batch


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


def _step(name: str, train: str, *, skip: bool) -> tuple[Method, dict[str, Tensor]]:
    method = build(name, train).double()  # in float32 the gradients of small batches lose digits in either form
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
