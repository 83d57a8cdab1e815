# SPDX-License-Identifier: Apache-2.0
"""Options of the report. Torch-free."""

from __future__ import annotations

import tyro
from pydantic import Field

from rekindle.core.options import Options


class ReportOptions(Options):
    """One HTML file about a run: did it help, where, and what did it cost. Several runs: a page that sets them side by side."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run folders; they need not have finished."""
    out: str = ""
    """The page (.html); without it report.html in the run, and with several runs in the folder that holds them all."""
    pictures: str = ""
    """Folder for the same pictures as PNG and SVG files, for papers."""
    comparison: tuple[str, ...] = ()
    """Comparisons to show (folders of `rekindle compare`, or their comparison.json). Without it, those in results/, in the run
    and beside it that measured exactly this model are found."""
    images: int = Field(7, ge=0)
    """Images shown with both models' maps: the worst and the best change under a segmentation protocol, and the middle one; else
    images of the run. 0 loads no model."""
    data: str = ""
    """Where the labelled data of the comparison lies now, if it has moved."""
    base: str = ""
    """Where the base of the run lies now, if it has moved."""
