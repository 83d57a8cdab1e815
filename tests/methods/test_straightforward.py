# SPDX-License-Identifier: Apache-2.0
"""The fast step against the straightforward one: equal terms, equal gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.dino import Dino
from rekindle.methods.glare import Glare
from rekindle.methods.shared.teacher import EmaTeacher
from tests.methods.scene import assert_same_gradients, tiny_batch, tiny_dino, tiny_glare
from tests.methods.straightforward import Straightforward

START = Progress(0, 10, seed=3)


def _moved(method: Glare | Dino, seed: int) -> None:
    """Give student and teacher different weights and the centres values, so that nothing is equal by accident."""
    draw = torch.Generator().manual_seed(seed)
    assert isinstance(method.teacher, EmaTeacher)
    averaged = {id(p) for p in method.teacher.averaged_parameters()}
    for parameter in method.parameters():
        if parameter.requires_grad or id(parameter) in averaged:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    for name, buffer in method.named_buffers():
        if name.endswith("value"):
            buffer.normal_(generator=draw)


@pytest.mark.parametrize("train", ["adapters", "all"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["glare", "dino"])
def test_terms_and_gradients_equal_those_of_the_straightforward_step(name: str, seed: int, train: str) -> None:
    method = tiny_glare(train) if name == "glare" else tiny_dino(train)
    _moved(method, seed)
    method.eval()
    batch = tiny_batch(4, seed=seed)
    slow = Straightforward(method)
    expected = slow(batch, START)
    total: Tensor = torch.stack(list(expected.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    found = method(batch, START)
    found.total.backward()
    assert found.terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found.terms[term], value.detach(), rtol=1e-5, atol=1e-6)
    assert assert_same_gradients(method, slow.method, atol=1e-5) >= 16
