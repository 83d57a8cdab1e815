# SPDX-License-Identifier: Apache-2.0
"""S29 of the GLARE specification, and the arithmetic around it."""

from __future__ import annotations

import math

import pytest

from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine, epoch_ramp, linear, warmup_cosine
from rekindle.methods.shared.distillation import teacher_temperature


def test_learning_rate_is_zero_at_first_peaks_after_the_warm_up_and_ends_at_its_final_value() -> None:
    def at(step: int) -> float:
        return warmup_cosine(Progress(step, 400), 3e-4, 1e-5, warmup_steps=4)

    assert at(0) == 0.0
    assert at(3) == at(4) == pytest.approx(3e-4)
    assert at(400) == pytest.approx(1e-5)
    assert at(202) == pytest.approx(1e-5 + 0.5 * (3e-4 - 1e-5) * (1 + math.cos(math.pi * 198 / 396)))


def test_a_warm_up_of_one_step_starts_at_zero_and_none_starts_at_the_peak() -> None:
    assert warmup_cosine(Progress(0, 10), 1.0, 0.0, warmup_steps=1) == 0.0
    assert warmup_cosine(Progress(0, 10), 1.0, 0.0, warmup_steps=0) == 1.0


def test_a_line_that_is_longer_than_the_run_ends_before_its_end() -> None:
    values = [linear(Progress(step, 100), 0.996, 1.0, stretch=1.25) for step in (0, 50, 100)]
    assert values == pytest.approx([0.996, 0.9976, 0.9992])
    assert linear(Progress(200, 100), 0.0, 1.0) == 1.0


def test_momentum_starts_at_its_first_value_never_exceeds_one_and_rises() -> None:
    values = [cosine(Progress(step, 50), 0.996, 1.0) for step in range(51)]
    assert values[0] == pytest.approx(0.996)
    assert max(values) <= 1.0
    assert values == sorted(values)


def test_teacher_temperature_ramps_over_thirty_epochs_of_a_hundred() -> None:
    def at(epoch: int) -> float:
        return teacher_temperature(Progress(epoch * 4, 400, 4), (0.04, 0.07), 30)

    assert at(0) == pytest.approx(0.04)
    assert at(28) < 0.07
    assert at(29) == at(30) == at(99) == pytest.approx(0.07)


def test_teacher_temperature_ramps_over_three_tenths_of_a_short_run() -> None:
    assert teacher_temperature(Progress(2, 10, 1), (0.04, 0.07), 30) == pytest.approx(0.07)
    assert teacher_temperature(Progress(0, 10, 1), (0.04, 0.07), 30) == pytest.approx(0.04)


def test_epoch_ramp_is_linear_per_epoch_and_constant_within_one() -> None:
    values = [epoch_ramp(Progress(step, 40, 4), 0.0, 3.0, ramp_epochs=4) for step in range(40)]
    assert values[:4] == [0.0] * 4
    assert values[4:8] == [1.0] * 4
    assert values[12:] == [3.0] * 28
