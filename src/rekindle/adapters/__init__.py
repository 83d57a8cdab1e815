# SPDX-License-Identifier: Apache-2.0
"""Small trained modules inside a frozen backbone. `ADAPTERS` names what wraps a block, by kind."""

from __future__ import annotations

ADAPTERS: dict[str, str] = {
    "uniadapter": "rekindle.adapters.uniadapter:AdaptedBlock",
}
