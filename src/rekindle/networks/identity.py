# SPDX-License-Identifier: Apache-2.0
"""Identity of a backbone: where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal


@dataclass(frozen=True)
class BackboneIdentity:
    """Where a backbone's weights come from, and how to build the same network again without them.

    Attributes:
        name: what the user asked for.
        source: the kind of place that answered.
        sha256: content hash of the weights as loaded (`tensors_hash`).
        licence: of the weights, where the source tells.
        arch: description for `backbone_from_description`; plain values only, so that it fits in JSON.

    """

    name: str
    source: Literal["timm", "file", "hub", "random"]
    sha256: str
    licence: str | None = None
    arch: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self) | {"arch": dict(self.arch)}
