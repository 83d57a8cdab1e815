# SPDX-License-Identifier: Apache-2.0
"""The columns of a matrix: a protocol on some labelled data with a share of the labels. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from rekindle.core.options import Options


class Target(Options):
    """Labelled images to measure on."""

    data: str
    """A folder, or NAME:ROOT of a published data set."""
    protocols: tuple[str, ...] = ()
    """Those of the grid that read this data; empty for all."""
    split: str = ""
    """Split that the metrics are of; empty for the grid's."""
    train_split: str = ""
    """Split that heads learn from; empty for the grid's."""
    train_shots: int = Field(0, ge=0)
    """Images of each class to learn from, where images have a class; 0 for the grid's."""
    group_by: str = ""
    """Which items belong together; empty for the grid's."""


class Column(Options):
    """One thing that every model is measured with."""

    protocol: str
    """Name of the protocol."""
    test: str
    """Name of the labelled data in `tests`; empty for the grid's `data`."""
    data: str
    """The labelled data."""
    split: str
    """Split that the metrics are of."""
    train_split: str
    """Split that heads learn from."""
    train_fraction: float
    """Share of it that they learn from."""
    train_shots: int = 0
    """So many images of each class instead; 0 for none."""
    group_by: str = ""
    """Which items belong together; empty for none."""
    is_one_of_shares: bool
    """Whether the grid asks for several shares, so that the name has to say which."""

    @property
    def panel(self) -> str:
        """Protocol and data, without the share."""
        return f"{self.protocol} on {self.test}" if self.test else self.protocol

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.panel}, {share_told(self.train_fraction)} of the labels" if self.is_one_of_shares else self.panel

    @property
    def folder(self) -> Path:
        """Where its results lie, below `results`; without several data and shares the protocol alone."""
        share = (f"labels-{self.train_fraction:.6g}",) if self.is_one_of_shares else ()
        return Path(*((folder_name(self.test),) if self.test else ()), self.protocol, *share)


def share_told(share: float) -> str:
    """Write a share as people read it.

    Example:
        >>> share_told(0.25), share_told(0.03125)
        ('25 %', '3.125 %')
    """
    return f"{100 * share:.4g} %"


def folder_name(name: str) -> str:
    """A name of the grid as one folder: letters, digits and `._=+-`, without dots or dashes at its ends.

    Example: "glare, no blur" -> "glare-no-blur".
    """
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", name)[:80].strip("-.")
