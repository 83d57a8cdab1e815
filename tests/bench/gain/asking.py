# SPDX-License-Identifier: Apache-2.0
"""Requests as the command line makes them."""

from __future__ import annotations

from collections.abc import Mapping

from rekindle.bench.gain.options import GainOptions
from rekindle.core.option_trees import checked
from rekindle.measuring.options import with_protocols


def gain_options(values: Mapping[str, object]) -> GainOptions:
    """Check a tree; the names are the command line's."""
    return checked(with_protocols(GainOptions, [str(values.get("protocol", "linear-seg"))]), values, "bench gain")
