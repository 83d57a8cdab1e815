# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math

import torch

from rekindle.networks.parts.heads import DinoHead


def _naive(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for i in (0, 2, 4):
        x = x @ state[f"mlp.{i}.weight"].T + state[f"mlp.{i}.bias"]
        if i < 4:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    x = x / x.norm(dim=-1, keepdim=True)
    g, v = (state[f"last_layer.parametrizations.weight.original{i}"] for i in (0, 1))
    logits: torch.Tensor = x @ (g * v / v.norm(dim=1, keepdim=True)).T
    return logits


def test_head_equals_its_formula_on_any_leading_shape() -> None:
    head = DinoHead(16, num_prototypes=10, hidden=24, bottleneck=8)
    torch.nn.init.uniform_(head.last_layer.get_parameter("parametrizations.weight.original0"), 0.5, 2.0)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(head(x), _naive(head.state_dict(), x))
    assert head(x[0, 0]).shape == (10,)


def test_logits_are_cosines_when_the_gain_is_frozen() -> None:
    head = DinoHead(16, num_prototypes=10, hidden=24, bottleneck=8, norm_last_layer=True)
    logits = head(100 * torch.randn(50, 16))
    assert logits.abs().max() <= 1 + 1e-6
    assert [n for n, p in head.named_parameters() if not p.requires_grad] == [
        "last_layer.parametrizations.weight.original0"
    ]


def test_head_starts_with_unit_gain_and_small_weights() -> None:
    head = DinoHead(64, num_prototypes=32, hidden=128, bottleneck=16)
    assert torch.equal(head.state_dict()["last_layer.parametrizations.weight.original0"], torch.ones(32, 1))
    assert abs(head.mlp[0].get_parameter("weight").std().item() - 0.02) < 0.002
    assert not head.mlp[4].get_parameter("bias").any()


def test_deep_copy_is_equal_and_independent() -> None:
    head = DinoHead(16, num_prototypes=10, hidden=24, bottleneck=8)
    twin = copy.deepcopy(head)
    x = torch.randn(4, 16)
    assert torch.equal(head(x), twin(x))
    before = twin(x).detach().clone()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    assert torch.equal(twin(x), before) and not torch.equal(head(x), before)


def test_counts_of_the_paper() -> None:
    head = DinoHead(384)
    gain = head.last_layer.get_parameter("parametrizations.weight.original0")
    assert sum(p.numel() for p in head.parameters()) == 7_606_528 + 8_192
    assert gain.numel() == 8_192


def test_every_parameter_receives_a_gradient() -> None:
    head = DinoHead(16, num_prototypes=10, hidden=24, bottleneck=8)
    head(torch.randn(6, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_autocast_normalises_in_float32() -> None:
    head = DinoHead(16, num_prototypes=10, hidden=24, bottleneck=8)
    x = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(x)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), head(x), atol=0.03)
