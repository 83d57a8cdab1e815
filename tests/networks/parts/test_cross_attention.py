# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rekindle.networks.parts.cross_attention import CrossAttention

D = 16


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _module(**options: float | None) -> CrossAttention:
    module = CrossAttention(D, temperature=options.get("temperature"))
    for i, layer in enumerate((module.query, module.key, module.value)):
        layer.weight.data = _draw(D, D, seed=10 + i) / 2
    return module


def test_equals_the_formula_written_as_loops() -> None:
    ca, q, z = _module(), _draw(2, 3, 4, D), _draw(2, 5, D, seed=1)
    mask = _draw(2, 3, 5, seed=2) > -0.5
    mask[:, :, 0] = True
    ca.requires_grad_(False)
    result = ca(q, z, key_mask=mask)
    for n in range(2):
        for m in range(3):
            for i in range(4):
                scores = [
                    torch.dot(ca.query.weight @ q[n, m, i], ca.key.weight @ z[n, j]) / math.sqrt(D) for j in range(5)
                ]
                weights = [float(s.exp()) * float(mask[n, m, j]) for j, s in enumerate(scores)]
                read = sum(w * (ca.value.weight @ z[n, j]) for j, w in enumerate(weights)) / sum(weights)
                torch.testing.assert_close(result[n, m, i], read, rtol=1e-4, atol=1e-5)


def test_weights_sum_to_one_and_masked_keys_get_exactly_none() -> None:
    ca, mask = _module(), _draw(2, 3, 5, seed=2) > 0
    mask[:, :, 0] = True
    weights = ca.weights(_draw(2, 3, 4, D), _draw(2, 5, D, seed=1), key_mask=mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    assert weights.masked_select(~mask[:, :, None].expand_as(weights)).eq(0).all()


def test_masked_keys_values_do_not_matter_and_order_does_not_either() -> None:
    ca, q, z = _module(), _draw(2, 4, D), _draw(2, 5, D, seed=1)
    mask = torch.tensor([True, False, True, True, False]).expand(2, 5)
    changed = torch.where(mask[..., None], z, 7.0)
    assert torch.equal(ca(q, z, key_mask=mask), ca(q, changed, key_mask=mask))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(ca(q, z[:, order], key_mask=mask[:, order]), ca(q, z, key_mask=mask))


def test_a_single_key_returns_its_value() -> None:
    ca, q, z = _module(), _draw(2, 4, D), _draw(2, 1, D, seed=1)
    torch.testing.assert_close(ca(q, z), (z @ ca.value.weight.T).expand(2, 4, D))


@pytest.mark.parametrize("how", ["zero projections", "small temperature"])
def test_without_contrast_it_returns_the_mean_value(how: str) -> None:
    ca = _module(temperature=1e-9 if how == "small temperature" else None)
    if how == "zero projections":
        ca.query.weight.data.zero_()
        ca.key.weight.data.zero_()
    z = _draw(2, 5, D, seed=1)
    expected = (z @ ca.value.weight.T).mean(1, keepdim=True).expand(2, 4, D)
    torch.testing.assert_close(ca(_draw(2, 4, D), z), expected)


def test_region_without_keys_stays_finite() -> None:
    ca, mask = _module(), torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 1] = False
    q = _draw(2, 3, 4, D).requires_grad_()
    out = ca(q, _draw(2, 5, D, seed=1), key_mask=mask)
    out.sum().backward()
    assert out.isfinite().all() and q.grad is not None and q.grad.isfinite().all()


def test_starts_as_a_convex_combination_of_the_memory() -> None:
    ca, z = CrossAttention(D), _draw(2, 5, D, seed=1)
    out = ca(_draw(2, 4, D), z)
    assert torch.equal(ca.value.weight, torch.eye(D)) and ca.temperature == 1 / math.sqrt(D)
    assert (out <= z.amax(1, keepdim=True)).all() and (out >= z.amin(1, keepdim=True)).all()


def test_meanshift_starts_without_parameters_effect() -> None:
    ca, q, z = CrossAttention(D, init="meanshift"), _draw(2, 4, D), _draw(2, 5, D, seed=1)
    expected = (0.1 / math.sqrt(D) * q @ z.transpose(1, 2)).softmax(-1) @ z
    torch.testing.assert_close(ca(q, z), expected)


def test_residual_adds_the_query_and_normalises() -> None:
    ca, q, z = CrossAttention(D, residual=True), _draw(2, 4, D), _draw(2, 5, D, seed=1)
    out = ca(q, z)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    plain = CrossAttention(D)
    plain.load_state_dict(ca.state_dict(), strict=False)
    torch.testing.assert_close(out, torch.layer_norm(q + plain(q, z), [D], eps=1e-6))


def test_gradient_in_float64() -> None:
    ca = _module().double()
    mask = torch.tensor([[[True, False, True]]])
    arguments = (
        _draw(1, 1, 2, D).double().requires_grad_(),
        _draw(1, 3, D, seed=1).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda q, z: ca(q, z, key_mask=mask), arguments)


def test_count_of_the_paper() -> None:
    assert sum(p.numel() for p in CrossAttention(384).parameters()) == 442_368
