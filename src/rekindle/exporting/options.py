# SPDX-License-Identifier: Apache-2.0
"""Options of an export. Torch-free."""

from __future__ import annotations

import tyro
from pydantic import Field, field_validator

from rekindle.core.options import Options
from rekindle.core.tables import known_name
from rekindle.exporting import FORMATS
from rekindle.networks.options import NetworkOptions


class ExportOptions(Options):
    """Write a model for another program, check that it gives the same features there, and describe it."""

    model: tyro.conf.Positional[str] = ""
    """Folder of a run, of transformers, timm or PEFT, timm name, hf-hub:owner/name, or checkpoint file."""
    format: str = Field("", description=f"For which program: {', '.join(FORMATS)} (told apart below).")
    out: str = ""
    """New or empty folder; it is there only once all checks have passed."""
    base: str | None = None
    """For a folder whose base has moved: where it is now."""
    arch: str | None = None
    """For a checkpoint file that does not tell its architecture: a timm name, or vit:width=384,depth=12,heads=6."""
    network: NetworkOptions = NetworkOptions()
    """Details of the backbone and its checkpoint; of a run, which knows them, nothing."""
    verdict: str | None = None
    """comparison.json of `rekindle compare`, or its folder, to print in the model card."""

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(FORMATS, "format", name) if name else name

    def network_options(self) -> NetworkOptions:
        """How to read the model: `network`, with `arch` in it."""
        return self.network if self.arch is None else self.network.model_copy(update={"arch": self.arch})
