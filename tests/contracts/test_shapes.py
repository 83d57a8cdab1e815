# SPDX-License-Identifier: Apache-2.0
"""The checks of shapes that run with all tests do notice a wrong one."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from rekindle.objectives.alignment import kernel_alignment
from rekindle.views.batch import Views
from tests.shapes import checked


def test_a_letter_means_one_size_throughout_a_call_and_another_in_the_next() -> None:
    tokens = torch.randn(2, 3, 4)
    kernel_alignment(tokens, tokens)
    kernel_alignment(tokens[:, :2], tokens[:, :2])
    with pytest.raises(BeartypeCallHintViolation):
        kernel_alignment(tokens, tokens[:, :2])
    with pytest.raises(BeartypeCallHintViolation):
        kernel_alignment(tokens[0], tokens[0])


def test_a_result_is_held_against_the_arguments() -> None:
    def turned(x: Float[Tensor, "N M"], *, is_right: bool) -> Float[Tensor, "M N"]:
        return x.T if is_right else x

    turned = checked(turned)
    assert turned(torch.ones(2, 3), is_right=True).shape == (3, 2)
    with pytest.raises(BeartypeCallHintViolation):
        turned(torch.ones(2, 3), is_right=False)


def test_fields_of_a_dataclass_are_checked_and_what_only_type_checkers_know_is_not() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        Views(pixels="no tensor", crops=None)  # type: ignore[arg-type]

    def loose(x: Unknown) -> int:  # type: ignore[name-defined]
        return int(x)

    assert checked(loose)("3") == 3
