# SPDX-License-Identifier: Apache-2.0
"""S6 of the GLARE specification."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rekindle.core.progress import Progress
from rekindle.methods.shared.teacher import EmaTeacher
from tests.methods.scene import tiny_batch, tiny_dino, tiny_glare


def _train_once(method: nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):  # the first step only moves up-projections and the head
        method(tiny_batch(), Progress(step, 10)).total.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_teacher_equals_student_at_first() -> None:
    method = tiny_glare()
    student = dict(method.student.named_parameters())
    for name, parameter in method.teacher.network.named_parameters():
        assert torch.equal(parameter, student[name])


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_update_is_the_weighted_sum_of_old_teacher_and_student(momentum: float) -> None:
    method = tiny_glare()
    _train_once(method)
    student = dict(method.student.named_parameters())
    before = {n: p.clone() for n, p in method.teacher.network.named_parameters()}
    method.teacher.update(method.student, momentum)
    for name, parameter in method.teacher.network.named_parameters():
        if student[name] is parameter:
            continue
        expected = momentum * before[name] + (1 - momentum) * student[name].detach()
        torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=2e-7)
    changed = any(not torch.equal(before[n], p) for n, p in method.teacher.network.named_parameters())
    assert changed == (momentum < 1.0)


def test_the_frozen_backbone_is_shared_in_adapter_mode_and_copied_with_all_weights() -> None:
    light, full = tiny_glare(), tiny_glare("all")
    name = "vit.patch_embed.proj.weight"
    for method, is_shared in ((light, True), (full, False)):
        student = dict(method.student.backbone.named_parameters())[name]
        teacher = dict(method.teacher.network.backbone.named_parameters())[name]
        assert (student.data_ptr() == teacher.data_ptr()) == is_shared


def test_the_teacher_stays_in_evaluation_mode() -> None:
    method = tiny_dino().train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())


def test_an_average_in_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        EmaTeacher(nn.Linear(2, 2).bfloat16())


def test_integer_buffers_are_copied_and_float_buffers_averaged() -> None:
    student = nn.BatchNorm1d(2)
    teacher = EmaTeacher(student)
    student(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    teacher.update(student, 0.5)
    assert int(teacher.network.num_batches_tracked) == 1  # type: ignore[arg-type]
    torch.testing.assert_close(teacher.network.running_mean, 0.5 * student.running_mean)  # type: ignore[operator]
