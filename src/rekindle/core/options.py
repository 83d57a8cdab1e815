# SPDX-License-Identifier: Apache-2.0
"""The base of every group of options. Importing it is cheap: no torch, so that `--help` stays fast."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen group of options that refuses unknown keys; the field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
