# SPDX-License-Identifier: Apache-2.0
"""Small trained modules inside a frozen backbone. `ADAPTERS` names what wraps a block, by kind."""

from __future__ import annotations

ADAPTERS: dict[str, str] = {
    "uniadapter": "rekindle.adapters.uniadapter:AdaptedBlock",
    "adaptformer": "rekindle.adapters.adaptformer:AdaptFormerBlock",
    "lora": "rekindle.adapters.lora:LoraBlock",
    "norm": "rekindle.adapters.deltas:NormBlock",
    "bias": "rekindle.adapters.deltas:BiasBlock",
}
