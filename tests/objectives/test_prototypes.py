# SPDX-License-Identifier: Apache-2.0
"""The blockwise loss against the plain sum over pairs, with gradients by autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rekindle.objectives.pairs import Pairs
from rekindle.objectives.plain import centred_softmax, row_cross_entropy
from rekindle.objectives.prototypes import Compared, TargetRows, prototype_cross_entropy

WEIGHTS = {"one": 1.0, "two": 0.25}


def _pairs(rows: Tensor) -> Pairs:
    return Pairs(rows[:, 0], rows[:, 1], torch.rand(len(rows)))


def _cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    targets: TargetRows,
    terms: dict[str, Pairs],
    weights: dict[str, float],
    *,
    temperature: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    compared = Compared(student, targets, terms, weights)
    return prototype_cross_entropy(student, prototypes, [compared], temperature=temperature)


class Scene:
    """Rows of four images, two terms with pairs inside of images: some rows in several pairs, some in none."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, per_image: tuple[int, int] = (6, 5)) -> None:
        torch.manual_seed(seed)
        images, (s, t) = 4, per_image
        unit = torch.nn.functional.normalize
        self.student = unit(torch.randn(images * s, 3, dtype=dtype), dim=-1).requires_grad_()
        self.prototypes = torch.randn(7, 3, dtype=dtype).requires_grad_()
        self.teacher, self.teacher_prototypes = (
            unit(torch.randn(images * t, 3, dtype=dtype), dim=-1),
            torch.randn(7, 3).to(dtype),
        )
        self.centre = torch.randn(7, dtype=dtype)
        order = torch.randperm(images * s), torch.randperm(images * t)  # rows of an image are not neighbours
        self.image_s, self.image_t = (
            torch.arange(images * s)[order[0]] % images,
            torch.arange(images * t)[order[1]] % images,
        )
        same = (self.image_s[:, None] == self.image_t).nonzero()
        self.terms = {
            name: _pairs(chosen[chosen[:, 0].argsort()])
            for name, chosen in (
                ("one", same[torch.randperm(len(same))[:23]]),
                ("two", same[torch.randperm(len(same))[:4]]),
            )
        }

    def targets(self) -> TargetRows:
        return TargetRows.centred(self.teacher, self.teacher_prototypes, self.centre, temperature=0.5)

    def plain(self) -> dict[str, Tensor]:
        logits, theirs = self.student @ self.prototypes.T, self.teacher @ self.teacher_prototypes.T
        goal = centred_softmax(theirs, self.centre, temperature=0.5)
        found = {}
        for name, pairs in self.terms.items():
            rows = row_cross_entropy(logits[pairs.student], goal[pairs.teacher], temperature=0.1)
            found[name] = (pairs.weight.to(goal.dtype) * rows).sum()
        return found


@pytest.mark.parametrize("block_rows", [1, 4, 12, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_equal_the_sum_over_pairs_whatever_the_blocks(seed: int, block_rows: int) -> None:
    scene = Scene(seed)
    expected = scene.plain()
    total = torch.stack([WEIGHTS[n] * v for n, v in expected.items()]).sum()
    wanted = torch.autograd.grad(2.5 * total, (scene.student, scene.prototypes))
    found, terms = prototype_cross_entropy(
        scene.student,
        scene.prototypes,
        [Compared(scene.student, scene.targets(), scene.terms, WEIGHTS, scene.image_s, scene.image_t)],
        temperature=0.1,
        block_rows=block_rows,
    )
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-6, atol=1e-9)
        assert not terms[name].requires_grad
    gradients = torch.autograd.grad(2.5 * found, (scene.student, scene.prototypes))
    torch.testing.assert_close(gradients, wanted, rtol=1e-6, atol=1e-9)


def _given(probs: Tensor) -> TargetRows:
    return TargetRows(len(probs), lambda index: probs if index is None else probs[index], probs.device)


def test_comparisons_together_are_the_sum_of_each_alone() -> None:
    scene, other = Scene(0), Scene(1, per_image=(3, 8))
    parts = [
        Compared(scene.student, scene.targets(), scene.terms, WEIGHTS),
        Compared(
            other.student, other.targets(), {"two": other.terms["two"]}, {"two": 0.5}, other.image_s, other.image_t
        ),
    ]
    rows = torch.cat([scene.student, other.student])
    together, terms = prototype_cross_entropy(rows, scene.prototypes, parts, temperature=0.1, block_rows=4)
    alone = [
        prototype_cross_entropy(own, scene.prototypes, [part], temperature=0.1)
        for own, part in zip((scene.student, other.student), parts, strict=True)
    ]
    wanted = {"one": alone[0][1]["one"], "two": alone[0][1]["two"] + alone[1][1]["two"]}
    torch.testing.assert_close(terms, wanted)
    inputs = (scene.student, other.student, scene.prototypes)
    apart = torch.autograd.grad(alone[0][0] + alone[1][0], inputs)
    torch.testing.assert_close(torch.autograd.grad(together, inputs), apart)


def test_gradcheck() -> None:
    scene = Scene(0)

    def total(student: Tensor, prototypes: Tensor) -> Tensor:
        return _cross_entropy(student, prototypes, scene.targets(), scene.terms, WEIGHTS, temperature=0.3)[0]

    assert torch.autograd.gradcheck(total, (scene.student, scene.prototypes))


def test_bfloat16_rows_give_float32_sums_near_those_of_float32() -> None:
    scene = Scene(1, torch.float32)
    exact, _ = _cross_entropy(scene.student, scene.prototypes, scene.targets(), scene.terms, WEIGHTS, temperature=0.5)
    low = scene.student.detach().bfloat16().requires_grad_()
    rough, _ = _cross_entropy(low, scene.prototypes, scene.targets(), scene.terms, WEIGHTS, temperature=0.5)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    (gradient,) = torch.autograd.grad(rough, low)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("per_image", [(5, 3), (17, 19)])
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_fill_up_a_block_in_bfloat16_change_nothing(per_image: tuple[int, int], grouped: bool) -> None:
    scene = Scene(1, torch.float32, per_image)
    groups = (scene.image_s, scene.image_t) if grouped else (None, None)
    found = []
    for student in (scene.student, scene.student.detach().bfloat16().requires_grad_()):
        compared = Compared(student, scene.targets(), scene.terms, WEIGHTS, *groups)
        total, _ = prototype_cross_entropy(student, scene.prototypes, [compared], temperature=0.5, block_rows=16)
        found.append([total.detach(), *torch.autograd.grad(total, (student, scene.prototypes))])
    for exact, rough in zip(*found, strict=True):
        torch.testing.assert_close(rough.float(), exact, rtol=0.03, atol=0.03 * float(exact.abs().max()))


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the sizes of low-precision matrix products: oneDNN compiles and keeps a program for each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        matrices = [a for a in args if isinstance(a, Tensor) and a.dtype == torch.bfloat16 and a.ndim == 2]
        if "mm" in str(func) and len(matrices) == 2:
            first, second = matrices
            self.seen.add((str(func), tuple(first.shape), tuple(second.shape)))
        return func(*args, **(kwargs or {}))


def test_ever_other_numbers_of_few_rows_come_to_few_sizes_of_products() -> None:
    draw = torch.Generator().manual_seed(0)
    prototypes, centre = torch.randn(7, 3, requires_grad=True), torch.zeros(7)
    with _Shapes() as shapes:
        for _ in range(60):
            rows = int(torch.randint(1, 64, (), generator=draw))
            student, teacher = (torch.randn(rows, 3).bfloat16() for _ in range(2))
            targets = TargetRows.centred(teacher, prototypes.detach().bfloat16(), centre, temperature=0.5)
            pairs = {"one": Pairs(torch.arange(rows), torch.arange(rows), torch.ones(rows))}
            _cross_entropy(student, prototypes, targets, pairs, {"one": 1.0}, temperature=0.1)
    sizes = {first[0] for _, first, _ in shapes.seen} | {second[0] for _, _, second in shapes.seen}
    assert sizes == {32, 64, 7, 3}, "whole steps of rows; K and the width"


def test_what_autograd_keeps_does_not_grow_with_k() -> None:
    """No logits are saved: only the gradients of the rows and of the prototypes."""
    scene, kept = Scene(2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):  # type: ignore[func-returns-value]
        _cross_entropy(scene.student, scene.prototypes, scene.targets(), scene.terms, WEIGHTS, temperature=0.1)
    assert sorted(map(tuple, kept)) == sorted([tuple(scene.student.shape), tuple(scene.prototypes.shape)])


def test_no_pairs_give_zero_with_a_zero_gradient() -> None:
    scene = Scene(0)
    none = _pairs(torch.zeros(0, 2, dtype=torch.int64))
    for student in (scene.student, scene.student[:0]):
        found, _ = _cross_entropy(
            student, scene.prototypes, scene.targets(), {"one": none}, {"one": 1.0}, temperature=0.1
        )
        assert float(found.detach()) == 0.0
        (gradient,) = torch.autograd.grad(found, scene.prototypes)
        assert float(gradient.abs().max()) == 0.0


def test_uniform_against_uniform_is_log_k_and_never_less_against_anything() -> None:
    rows = torch.zeros(6, 3)
    uniform = _given(torch.full((6, 8192), 1 / 8192))
    pairs = {"one": Pairs(torch.arange(6), torch.arange(6), torch.full((6,), 1 / 6))}
    _, loss = _cross_entropy(rows, torch.randn(8192, 3), uniform, pairs, {"one": 1.0}, temperature=0.1)
    assert float(loss["one"]) == pytest.approx(math.log(8192), abs=1e-4)
    _, moved = _cross_entropy(torch.randn(6, 3), torch.randn(8192, 3), uniform, pairs, {"one": 1.0}, temperature=0.1)
    assert float(moved["one"]) > math.log(8192)


def test_targets_know_their_health() -> None:
    everything = torch.arange(4)
    for probs, entropy in (
        (torch.full((4, 8), 1 / 8), math.log(8)),
        (torch.eye(8)[:4], 0.0),
        (torch.eye(8)[:1].expand(4, -1), 0.0),
    ):
        targets = _given(probs)
        assert float(targets.entropy()) == 0.0 and targets.mass() is None  # nothing was asked for yet
        for half in everything.chunk(2):
            targets.probs(half)
        assert float(targets.entropy()) == pytest.approx(entropy, abs=1e-5)
        torch.testing.assert_close(targets.mass(), probs.sum(dim=0))


def test_centred_targets_equal_the_softmax_of_the_centred_logits_and_carry_no_gradient() -> None:
    scene = Scene(0)
    rows = scene.teacher.clone().requires_grad_()
    found = TargetRows.centred(rows, scene.teacher_prototypes, scene.centre, temperature=0.5).probs(
        torch.tensor([3, 1])
    )
    assert not found.requires_grad
    expected = centred_softmax(scene.teacher @ scene.teacher_prototypes.T, scene.centre, temperature=0.5)
    torch.testing.assert_close(found, expected[[3, 1]])


def test_a_temperature_that_is_not_positive_and_weights_of_other_names_are_refused() -> None:
    scene = Scene(0)
    for weights, temperature, message in ((WEIGHTS, 0.0, "temperature"), ({"one": 1.0}, 0.1, "'two'")):
        with pytest.raises(ValueError, match=message):
            _cross_entropy(
                scene.student, scene.prototypes, scene.targets(), scene.terms, weights, temperature=temperature
            )
