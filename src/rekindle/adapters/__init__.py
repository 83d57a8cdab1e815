# SPDX-License-Identifier: Apache-2.0
"""Small trained modules inside a frozen backbone. `ADAPTERS` names what wraps a block, by kind. Torch-free."""

from __future__ import annotations

from rekindle.core.tables import Entry

ADAPTERS: dict[str, Entry] = {
    "uniadapter": Entry(
        "rekindle.adapters.uniadapter:AdaptedBlock",
        "a bottleneck beside the stream, in one of four places (Lu et al., 2024)",
    ),
    "adaptformer": Entry(
        "rekindle.adapters.adaptformer:AdaptFormerBlock",
        "a bottleneck beside the MLP (Chen et al., 2022)",
    ),
    "lora": Entry(
        "rekindle.adapters.lora:LoraBlock",
        "low-rank updates of the attention's maps; can be folded, and PEFT reads it (Hu et al., 2021)",
    ),
    "norm": Entry(
        "rekindle.adapters.deltas:NormBlock",
        "the LayerNorms of the blocks; can be folded",
    ),
    "bias": Entry(
        "rekindle.adapters.deltas:BiasBlock",
        "the biases of the blocks (BitFit, Ben Zaken et al., 2022); can be folded",
    ),
}
