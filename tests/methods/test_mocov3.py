# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.mocov3 import Mocov3, Mocov3Options
from rekindle.networks.parts.mlp_head import MlpHead
from rekindle.objectives import plain
from rekindle.objectives.contrast import info_nce
from tests.methods.scene import tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_moco(train: str = "adapters", **options: Any) -> Mocov3:
    with seeded_default(0, "method"):
        return Mocov3(Mocov3Options(**{"projector_hidden": 32, "projector_out": 16, **options}), tiny_backbone(train))


@torch.no_grad()
def test_the_loss_is_algorithm_1_of_the_plain_equation() -> None:
    method, batch = tiny_moco().eval(), tiny_batch(4)
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    q, k = [], []
    for view in batch.global_views.pixels:
        q.append(method.predictor(student.projector(student.backbone(view).class_token)))
        k.append(teacher.projector(teacher.backbone(view).class_token))
    total = sum(float(plain.info_nce(q[view], k[1 - view], temperature=0.2)) for view in range(2))
    assert float(found.total) == pytest.approx(2 * 0.2 * total, rel=1e-4)


def test_each_query_against_its_key_and_the_others_is_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightlySSL's NTXentLoss with a memory bank (MoCo): the bank of query i holds the keys of the others."""
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    loss = pytest.importorskip("lightly.loss.ntx_ent_loss")
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 6, 8)
    theirs = []
    for i in range(6):
        criterion = loss.NTXentLoss(temperature=0.2, memory_bank_size=(5, 8))
        others = torch.cat([keys[:i], keys[i + 1 :]])
        criterion.memory_bank.bank = F.normalize(others, dim=-1)
        theirs.append(criterion(queries[i : i + 1], keys[i : i + 1]))
    torch.testing.assert_close(
        info_nce(queries, keys, temperature=0.2), torch.stack(theirs).mean(), atol=1e-5, rtol=1e-5
    )


def test_identical_keys_give_the_logarithm_of_their_number() -> None:
    queries, key = torch.randn(5, 8), torch.randn(1, 8)
    assert float(info_nce(queries, key.expand(7, -1), temperature=0.2, first=2)) == pytest.approx(1.94591, rel=1e-4)
    assert float(info_nce(key, key, temperature=0.2)) == 0.0
    for wrong in ({"temperature": 0.0}, {"temperature": 0.2, "first": 3}):
        with pytest.raises(ValueError, match="own keys among the 7"):
            info_nce(queries, key.expand(7, -1), **wrong)  # type: ignore[arg-type]


def test_the_projector_normalises_by_the_batch_in_both_modes_and_ends_without_affine_map() -> None:
    projector = MlpHead(8, 16, 4)
    x = torch.randn(32, 8)
    assert torch.equal(projector(x), projector.eval()(x))
    out = projector(x)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert [type(layer).__name__ for layer in projector] == [
        "Linear",
        "SharedBatchNorm",
        "ReLU",
        "Linear",
        "SharedBatchNorm",
    ]
    assert all(layer.bias is None for layer in projector if isinstance(layer, torch.nn.Linear))


def test_the_patch_projection_never_trains_unless_told() -> None:
    for frozen in (True, False):
        method = tiny_moco("all", freeze_patch_projection=frozen)
        trains = {p.requires_grad for p in method.student.backbone.vit.patch_embed.parameters()}
        assert trains == {not frozen}


def test_one_image_alone_is_refused() -> None:
    with pytest.raises(RequestError, match="at least two"):
        tiny_moco()(tiny_batch(1), START)
