# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.ibot import Ibot, IbotOptions
from rekindle.objectives import plain
from rekindle.views.distortion import draw_patch_mask
from tests.methods.scene import SMALL_HEAD, tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_ibot(train: str = "adapters", **options: Any) -> Ibot:
    with seeded_default(0, "method"):
        method = Ibot(IbotOptions(**{**SMALL_HEAD, **options}), tiny_backbone(train))
        torch.nn.init.normal_(method.mask_token)
        for centre in method.centres.values():
            torch.nn.init.normal_(centre.value, std=0.05)  # type: ignore[arg-type]
    return method.eval()


@torch.no_grad()
def test_both_terms_are_the_plain_equations() -> None:
    """iBOT, eqs. 2 and 3: every row through the heads."""
    method, batch = tiny_ibot(), tiny_batch(3)
    assert batch.local_views is not None
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    hidden = draw_patch_mask(START, 3, 2, (4, 4), shape="block").flatten(0, 1)  # [2B, gh, gw]
    large = batch.global_views.pixels.flatten(0, 1)
    target = teacher.backbone(large)
    masked = student.backbone(large, patch_mask=hidden, mask_token=method.mask_token)
    small = student.backbone(batch.local_views.pixels.flatten(0, 1))

    def probs(tokens: Tensor, level: str) -> Tensor:
        return plain.centred_softmax(teacher.head(tokens), method.upkeep.centre(level).value, temperature=0.04)

    rows = plain.row_cross_entropy(
        student.head(masked.patches[hidden]), probs(target.patches[hidden], "patch"), temperature=0.1
    )
    assert len(rows)
    mim = float(plain.masked_patch_mean(rows, hidden.nonzero()[:, 0], num_views=6))
    logits = student.head(torch.cat([masked.class_token, small.class_token])).view(4, 3, -1)
    cls = float(plain.cross_view_entropy(logits, probs(target.class_token, "cls").view(2, 3, -1), temperature=0.1))
    assert float(found.terms["mim"]) == pytest.approx(mim, rel=1e-4)
    assert float(found.terms["cls"]) == pytest.approx(cls, rel=1e-4)
    assert float(found.total) == pytest.approx(mim + cls, rel=1e-4)


def test_weights_switch_terms_off_and_both_off_is_refused() -> None:
    batch = tiny_batch()
    full, cls = tiny_ibot()(batch, START), tiny_ibot(patch_weight=0.0)(batch, START)
    torch.testing.assert_close(cls.total, full.terms["cls"])
    with pytest.raises(ValidationError, match="no loss"):
        IbotOptions(global_weight=0, patch_weight=0)


def test_without_hidden_patches_the_patch_term_is_zero_and_finite() -> None:
    batch = tiny_batch(1)
    for step in range(30):  # a step on which neither view hides anything
        progress = Progress(step, 100)
        if not draw_patch_mask(progress, 1, 2, (4, 4), shape="block").any():
            break
    found = tiny_ibot()(batch, progress)
    found.total.backward()
    assert float(found.terms["mim"]) == 0.0 and bool(found.total.isfinite())


def test_the_mask_token_is_the_only_tensor_beyond_dinos() -> None:
    names = {n for n, p in tiny_ibot().named_parameters() if p.requires_grad}
    assert {n for n in names if not n.startswith("student.")} == {"mask_token"}


def test_the_patch_term_is_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightlySSL's IBOTPatchLoss on random logits, against the pairs and sums that this method uses."""
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    loss = pytest.importorskip("lightly.loss.ibot_loss")
    from rekindle.objectives.pairs import same_patch_pairs
    from rekindle.objectives.prototypes import Compared, TargetRows, prototype_cross_entropy

    torch.manual_seed(0)
    mask = torch.rand(4, 3, 3) < 0.4
    logits, given = torch.randn(2, 36, 16)
    rows = mask.flatten().nonzero()[:, 0]
    theirs = loss.IBOTPatchLoss(16, teacher_temp=0.05)(given[rows], logits[rows], mask)
    pairs = same_patch_pairs(mask.flatten(1), num_views=4)
    targets = TargetRows.centred(given, torch.eye(16), torch.zeros(16), temperature=0.05)
    compared = Compared(logits, targets, {"mim": pairs}, {"mim": 1.0})
    ours, _ = prototype_cross_entropy(logits, torch.eye(16), [compared], temperature=0.1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
