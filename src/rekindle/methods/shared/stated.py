# SPDX-License-Identifier: Apache-2.0
"""What a paper states about a setting, and where: the rows of `rekindle config --explain-paper`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stated:
    """A setting as a paper has it.

    Attributes:
        value: in the unit of our option; a text where no option could hold it.
        place: section, table or official script.
        differs: why ours is another value; empty where it is the same.
        is_lent: the paper says nothing, and `place` is whose value was taken.
    """

    value: object
    place: str
    differs: str = ""
    is_lent: bool = False


Statements = Mapping[str, Stated]
"""Dotted name of an option -> what the paper states of it."""

EPOCHS = "ask for --epochs; a run has 100 where nobody does"
BATCH = "ask for --batch-size; 512 where nobody does, and the learning rate is scaled with it"


def at(place: str, values: Mapping[str, object]) -> dict[str, Stated]:
    """What one place states: dotted name -> value."""
    return {name: Stated(value, place) for name, value in values.items()}


def lent(place: str, values: Mapping[str, object]) -> dict[str, Stated]:
    """What the paper is silent about and `place` has."""
    return {name: Stated(value, place, is_lent=True) for name, value in values.items()}


def training(place: str, *, epochs: int, batch: int) -> dict[str, Stated]:
    """Length and batch of the paper's own runs, which a run here has only where they are asked for."""
    return {
        "epochs": Stated(epochs, place, "" if epochs == 100 else EPOCHS),
        "batch_size": Stated(batch, place, "" if batch == 512 else BATCH),
    }


def byol_colours(place: str) -> dict[str, Stated]:
    """The colour changes of BYOL, which most of these papers share."""
    return at(
        place,
        {
            "views.jitter_p": 0.8,
            "views.brightness": 0.4,
            "views.contrast": 0.4,
            "views.saturation": 0.2,
            "views.hue": 0.1,
            "views.grey_p": 0.2,
            "views.blur_p": (1.0, 0.1, 0.5),
            "views.blur_sigma": (0.1, 2.0),
            "views.solarize_p": (0.0, 0.2, 0.0),
        },
    )
