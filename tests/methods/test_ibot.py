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
from rekindle.methods.shared.distillation import Centre
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


def entropy(student: Tensor, probs: Tensor) -> float:
    return float(-(probs * (student / 0.1).log_softmax(dim=-1)).sum())


@torch.no_grad()
def test_both_terms_are_their_equations_written_as_loops() -> None:
    """iBOT, eqs. 2 and 3: every row through the heads, then sums over views, images and hidden patches."""
    method, batch = tiny_ibot(), tiny_batch(3)
    assert batch.local_views is not None
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    hidden = draw_patch_mask(START, 3, 2, (4, 4), shape="block")
    targets = [teacher.backbone(v) for v in batch.global_views.pixels]
    masked = [
        student.backbone(v, patch_mask=hidden[i], mask_token=method.mask_token)
        for i, v in enumerate(batch.global_views.pixels)
    ]
    small = [student.backbone(v) for v in batch.local_views.pixels]

    def probs(tokens: Tensor, level: str) -> Tensor:
        centre = method.centres[level]
        assert isinstance(centre, Centre)
        logits: Tensor = teacher.head(tokens) - centre.value
        return (logits / 0.04).softmax(dim=-1)

    mim, count = 0.0, 0
    for view in range(2):
        for image in range(3):
            rows = hidden[view, image].flatten().nonzero()[:, 0].tolist()
            count += len(rows)
            own, given = (t[view].patches[image].flatten(0, 1) for t in (masked, targets))
            mim += sum(entropy(student.head(own[r]), probs(given[r], "patch")) for r in rows) / max(len(rows), 1) / 6
    cls = [
        entropy(student.head(own.class_token[image]), probs(targets[t].class_token[image], "cls")) / 3
        for s, own in enumerate([*masked, *small])
        for t in range(2)
        for image in range(3)
        if s != t
    ]
    assert count
    assert float(found.terms["mim"]) == pytest.approx(mim, rel=1e-4)
    assert float(found.terms["cls"]) == pytest.approx(sum(cls) / 6, rel=1e-4)
    assert float(found.total) == pytest.approx(mim + sum(cls) / 6, rel=1e-4)


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
