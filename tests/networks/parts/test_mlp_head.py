# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rekindle.networks.parts.mlp_head import MlpHead, SharedBatchNorm, _AcrossProcesses


def test_with_batch_norm_it_is_moco_v3s_projector() -> None:
    head, layers = MlpHead(8, 16, 16, 4), []
    for before, after, is_last in ((8, 16, False), (16, 16, False), (16, 4, True)):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not is_last)]
        layers += [] if is_last else [nn.ReLU()]
    projector = nn.Sequential(*layers)
    projector.load_state_dict(head.state_dict(), strict=False)  # but for running statistics, which the head has not
    x = torch.randn(12, 8)
    for mode in (True, False):
        torch.testing.assert_close(head.train(mode)(x), projector(x))


@pytest.mark.parametrize("norm", ["ln", "none"])
def test_without_batch_norm_rows_do_not_see_each_other(norm: str) -> None:
    head = MlpHead(8, 16, 4, norm=norm)  # type: ignore[arg-type]
    x = torch.randn(6, 8)
    torch.testing.assert_close(head(x)[:1], head(x[:1]))


def test_biases_are_only_where_no_norm_follows() -> None:
    def biases(head: MlpHead) -> list[bool]:
        return [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]

    assert biases(MlpHead(4, 4, 4)) == [False, False]
    assert biases(MlpHead(4, 4, 4, norm_last=False)) == [False, True]
    assert biases(MlpHead(4, 4, 4, norm="none")) == [True, True]
    assert [type(m).__name__ for m in MlpHead(4, 4, 4, norm="none", activation=nn.GELU)] == ["Linear", "GELU", "Linear"]


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_across_processes_is_torchs_batch_norm_when_there_is_one(affine: bool) -> None:
    """What two processes add, a sum, is the identity in one; that two equal one is tested of the whole method."""
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gain, offset = (weight, bias) if affine else (None, None)
    wanted = [x, weight, bias] if affine else [x]
    own = _AcrossProcesses.apply(x, gain, offset, 1e-5)
    theirs = F.batch_norm(x, None, None, gain, offset, training=True)
    torch.testing.assert_close(own, theirs)
    pull = torch.randn_like(own)
    torch.testing.assert_close(torch.autograd.grad(own, wanted, pull), torch.autograd.grad(theirs, wanted, pull))


def test_in_bfloat16_the_statistics_are_float32() -> None:
    x = 10 + torch.randn(64, 3)
    norm = SharedBatchNorm(3).to(torch.bfloat16)
    own = _AcrossProcesses.apply(x.bfloat16(), norm.weight, norm.bias, 1e-5)
    assert own.dtype == torch.bfloat16
    exact = F.batch_norm(x.bfloat16().float(), None, None, training=True)
    torch.testing.assert_close(own.float(), exact, atol=0.01, rtol=0.01)
