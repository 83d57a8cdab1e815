# SPDX-License-Identifier: Apache-2.0
"""Our way back through attention and through frozen branches, against autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from torch import nn

from rekindle.networks.attention import attend
from rekindle.networks.frozen_branch import onto_stream
from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.stochastic_depth import BranchPath


def _attention(fused: bool, **changes: Any) -> Any:
    torch.manual_seed(0)
    attn: Any = Attention(24, 3, qkv_bias=True, **changes).double()
    attn.fused_attn = fused
    return attn


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "norm_layer": nn.LayerNorm}])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_and_its_gradients_are_timms(fused: bool, changes: dict[str, Any]) -> None:
    attn, x, pull = _attention(fused, **changes), torch.randn(2, 5, 24).double().requires_grad_(), torch.randn(2, 5, 24)
    inputs = [x, *attn.parameters()]
    ours, theirs = attend(attn, x), attn(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(ours, inputs, pull.double())
    torch.testing.assert_close(found, torch.autograd.grad(theirs, inputs, pull.double()), rtol=1e-10, atol=1e-12)


def test_a_mask_is_obeyed() -> None:
    attn, x = _attention(True), torch.randn(1, 4, 24).double().requires_grad_()
    mask = torch.tensor([True, True, False, True])[None, None, None]
    torch.testing.assert_close(attend(attn, x, mask), attn(x, attn_mask=mask))


def test_plain_attention_keeps_no_weights() -> None:
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):  # type: ignore[func-returns-value]
        attend(_attention(False), torch.randn(2, 7, 24).double().requires_grad_())
    assert kept and not [shape for shape in kept if tuple(shape[-2:]) == (7, 7)]


DROPPED = torch.tensor([0.0, 1.25]).double()[:, None, None]


@pytest.mark.parametrize("path", [None, BranchPath(DROPPED), BranchPath(DROPPED, torch.tensor([1]), 1.25)])
def test_a_frozen_branch_gives_the_gradient_of_the_plain_sum_and_once(path: BranchPath | None) -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)).double().requires_grad_(False)
    x, pull = torch.randn(2, 4, 6).double().requires_grad_(), torch.randn(2, 4, 6).double()
    ours, plain = onto_stream(x, branch, path), x + (1.0 if path is None else path.factor) * branch(x)
    torch.testing.assert_close(ours, plain)
    (found,) = torch.autograd.grad(ours, x, pull, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(plain, x, pull)[0])
    with pytest.raises(RuntimeError, match="gone after one way back"):
        torch.autograd.grad(ours, x, pull)


def test_unit_rows_have_the_gradient_of_a_division_by_the_norm() -> None:
    torch.manual_seed(0)
    head = DinoHead(5, 7, hidden=6, bottleneck=4).double()
    assert torch.autograd.gradcheck(head.project, (torch.randn(3, 5).double().requires_grad_(),))
