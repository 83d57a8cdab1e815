# SPDX-License-Identifier: Apache-2.0
"""The base of every protocol's options. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rekindle.core.options import Options

Presets = Mapping[str, Mapping[str, object]]


class ProtocolOptions(Options):
    """Options of a protocol. The defaults are a small preset that says something in minutes on two cores."""

    PRESETS: ClassVar[Presets] = {}
    """Other settings by name (`--preset`): the paper's, or those for a data set; what is asked for overrides them."""
    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ()
    """Names of sides in px that a model's patch must divide; where nobody set one, it follows the patch."""
