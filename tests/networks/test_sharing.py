# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import nn

from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.sharing import copy_sharing_frozen


def test_frozen_parameters_are_shared_and_the_rest_is_copied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), DinoHead(3, 4, 5, 6))
    module[0].requires_grad_(False)
    twin = copy_sharing_frozen(module)
    theirs = dict(twin.named_parameters())
    for name, parameter in module.named_parameters():
        assert (theirs[name] is parameter) == (not parameter.requires_grad), name
        assert torch.equal(theirs[name], parameter) and not theirs[name].requires_grad
        if parameter.requires_grad:
            assert theirs[name].data_ptr() != parameter.data_ptr()
    assert all(p.requires_grad for p in module[2].parameters())
    ours_running, their_running = module.get_buffer("1.running_mean"), twin.get_buffer("1.running_mean")
    assert ours_running.data_ptr() != their_running.data_ptr()
    module.train()
    twin.eval()
    assert module[1].training and not twin[1].training
