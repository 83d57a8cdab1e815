# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from rekindle.core.progress import Progress
from rekindle.objectives.pairs import cross_view_pairs
from rekindle.objectives.prototypes import Compared, TargetRows, prototype_cross_entropy
from tests.methods.scene import tiny_batch, tiny_dino, tiny_glare

START = Progress(0, 10)


def test_dino_is_glare_with_the_global_term_alone() -> None:
    """Section 8.1 of the GLARE specification."""
    glare = tiny_glare(regional_weight=0.0, local_weight=0.0, distortion="none")
    dino = tiny_dino()
    dino.student.load_state_dict(glare.student.state_dict())
    dino.teacher.network.load_state_dict(glare.teacher.network.state_dict())
    batch = tiny_batch()
    torch.testing.assert_close(dino.eval()(batch, START).total, glare.eval()(batch, START).total)


def test_uniform_outputs_give_log_k() -> None:
    method = tiny_dino()
    for head in (method.student.head, method.teacher.network.head):
        head.last_layer.parametrizations.weight.original0.data.zero_()
    assert float(method(tiny_batch(), START).terms["glob"]) == pytest.approx(math.log(32), rel=1e-5)


def test_prototypes_do_not_move_in_the_first_epoch_not_even_by_decay() -> None:
    """S29."""
    method = tiny_dino()
    last = {n: p.clone() for n, p in method.student.head.last_layer.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for step in range(5):
        progress = Progress(step, 20, steps_per_epoch=4)
        optimizer.zero_grad()
        method(tiny_batch(), progress).total.backward()
        method.before_step(progress)
        optimizer.step()
        moved = any(not torch.equal(last[n], p) for n, p in method.student.head.last_layer.named_parameters())
        assert moved == (step >= 4)


def test_the_teachers_targets_use_the_centre_from_before_the_step() -> None:
    method, batch = tiny_dino().eval(), tiny_batch()
    first = method(batch, START).total.detach()
    torch.testing.assert_close(method(batch, START).total.detach(), first)
    method.upkeep.centre("cls").update()
    assert not torch.equal(method.upkeep.centre("cls").value, torch.zeros(32))
    assert float(method(batch, START).total.detach()) != pytest.approx(float(first), rel=1e-6)


def test_the_exported_network_is_the_one_asked_for() -> None:
    for name in ("teacher", "student"):
        method = tiny_dino(export=name)
        expected = method.teacher.network.backbone if name == "teacher" else method.student.backbone
        assert method.exported() is expected


def test_thirty_steps_lower_the_loss() -> None:
    method, batch = tiny_dino("all"), tiny_batch(4)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    first = float(method(batch, START).total.detach())
    for _ in range(30):
        optimizer.zero_grad()
        method(batch, START).total.backward()
        optimizer.step()
    assert float(method(batch, START).total.detach()) < first


def test_the_loss_is_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightlySSL's DINOLoss on random logits of two large and three small views, against our pairs and sums."""
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    loss = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    student, given, centre = torch.randn(5, 4, 16), torch.randn(2, 4, 16), 0.1 * torch.randn(16)
    criterion = loss.DINOLoss(output_dim=16, teacher_temp=0.05, warmup_teacher_temp=0.05, student_temp=0.1)
    criterion.center.copy_(centre.expand_as(criterion.center))
    theirs = criterion(list(given), list(student), epoch=0)
    pairs = cross_view_pairs(
        4, student_views=range(5), num_student_views=5, num_teacher_views=2, device=torch.device("cpu")
    )
    targets = TargetRows.centred(given.flatten(0, 1), torch.eye(16), centre, temperature=0.05)
    ours, _ = prototype_cross_entropy(
        student.flatten(0, 1),
        torch.eye(16),
        [Compared(student.flatten(0, 1), targets, {"glob": pairs}, {"glob": 1.0})],
        temperature=0.1,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
