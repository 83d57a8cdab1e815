# SPDX-License-Identifier: Apache-2.0
"""The base of every group of options. Importing it is cheap: no torch, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Accelerator = Literal["auto", "cpu", "gpu"]
"""Where to compute: `auto` takes a GPU where there is one. Runs say `accelerator`, measurements `device`."""


class Options(BaseModel):
    """A frozen group of options that refuses unknown keys; the field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
