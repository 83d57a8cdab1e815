# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the curves that a run leaves: drawing them takes two thirds of the time of a tiny run.

A blank picture stands in for them in all tests, but for those in `drawn()`. tests/drawing tests the curves themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from rekindle.drawing import pictures

_REAL = pictures.write_curves


def blank(path: Path, steps: Sequence[int], terms: Mapping[str, Sequence[float]], *, smooth: int = 1) -> None:
    assert terms and smooth >= 1 and all(len(values) == len(steps) for values in terms.values())
    pictures.write_picture(path, np.ones((1, 1, 3)))


@contextlib.contextmanager
def not_drawn() -> Iterator[None]:
    with patch.object(pictures, "write_curves", blank):
        yield


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    with patch.object(pictures, "write_curves", _REAL):
        yield
