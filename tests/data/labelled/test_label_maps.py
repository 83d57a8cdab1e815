# SPDX-License-Identifier: Apache-2.0
"""Stored values to class ids, against a loop over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rekindle.data.labelled.label_maps import UNKNOWN, LabelMap, color_code, present


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("keys", [[0, 3, 255], [7], [1, 300], [2, 70_000]])
def test_a_table_says_the_same_as_a_loop(dtype: Any, keys: list[int]) -> None:
    table = {key: 10 + i for i, key in enumerate(keys)}
    top = min(np.iinfo(dtype).max, 80_000)
    stored = np.random.default_rng(0).integers(0, top, (9, 11)).astype(dtype)
    stored[0, : len(keys)] = [min(key, top) for key in keys]
    expected = [[table.get(int(value), UNKNOWN) for value in row] for row in stored]
    assert LabelMap(table=table).ids(stored).tolist() == expected


def test_negative_values_stand_for_nothing() -> None:
    assert LabelMap(table={0: 0, 5: 1}).ids(np.array([-1, -7, 5], np.int32)).tolist() == [UNKNOWN, UNKNOWN, 1]


def test_colours_are_told_as_colours() -> None:
    assert LabelMap("colours").told([color_code((1, 2, 3)), color_code((255, 0, 128))]) == "(1, 2, 3), (255, 0, 128)"


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_present_values_are_those_of_a_set(dtype: Any) -> None:
    values = np.random.default_rng(1).integers(0, 200, (5, 7)).astype(dtype)
    assert present(values) == sorted({int(v) for v in values.reshape(-1)})
