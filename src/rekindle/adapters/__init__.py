# SPDX-License-Identifier: Apache-2.0
"""Small trained modules inside a frozen backbone. `ADAPTERS` names what wraps a block, by kind."""

from __future__ import annotations

SUMMARIES: dict[str, str] = {
    "uniadapter": "a bottleneck beside the stream, in one of four places (Lu et al., 2024)",
    "adaptformer": "a bottleneck beside the MLP (Chen et al., 2022)",
    "lora": "low-rank updates of the attention's maps; can be folded, and PEFT reads it (Hu et al., 2021)",
    "norm": "the LayerNorms of the blocks; can be folded",
    "bias": "the biases of the blocks (BitFit, Ben Zaken et al., 2022); can be folded",
}

ADAPTERS: dict[str, str] = {
    "uniadapter": "rekindle.adapters.uniadapter:AdaptedBlock",
    "adaptformer": "rekindle.adapters.adaptformer:AdaptFormerBlock",
    "lora": "rekindle.adapters.lora:LoraBlock",
    "norm": "rekindle.adapters.deltas:NormBlock",
    "bias": "rekindle.adapters.deltas:BiasBlock",
}
