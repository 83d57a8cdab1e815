# SPDX-License-Identifier: Apache-2.0
"""Small trained modules inside a frozen backbone. `ADAPTERS` names what wraps a block, by kind. Torch-free.

A newcomer is a module and an entry here; a third file, `options.py`, only where it needs an option that no kind has yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.core.tables import Entry


@dataclass(frozen=True)
class AdapterEntry(Entry):
    """What a kind of adapter is and can, told without importing it.

    Attributes:
        usual_rank: r where nobody asks for one; None for a kind without.
        most_rank: the widest that is allowed; None for any.
        has_scale: the option `scale` is the factor on its output.
        folds: what it learned can be added to the weights; its block is a `ReplacingBlock`.
        moves_base: it moves numbers of the base itself, so beside train=all they would train twice.
    """

    usual_rank: int | None = None
    most_rank: int | None = None
    has_scale: bool = False
    folds: bool = False
    moves_base: bool = False

    @property
    def told(self) -> str:
        """The summary, the usual rank, and whether it folds."""
        rank = [] if self.usual_rank is None else [f"usual rank {self.usual_rank}"]
        return "; ".join([self.summary, *rank, *(["folds into the weights"] if self.folds else [])])


ADAPTERS: dict[str, AdapterEntry] = {
    "uniadapter": AdapterEntry(
        "rekindle.adapters.uniadapter:AdaptedBlock",
        "a bottleneck beside the stream, in one of four places (Lu et al., 2024)",
        usual_rank=512,  # the only one that gives GLARE's two parameter counts
        has_scale=True,
    ),
    "adaptformer": AdapterEntry(
        "rekindle.adapters.adaptformer:AdaptFormerBlock",
        "a bottleneck beside the MLP (Chen et al., 2022)",
        usual_rank=64,  # its paper's
        has_scale=True,
    ),
    "lora": AdapterEntry(
        "rekindle.adapters.lora:LoraBlock",
        "low-rank updates of the attention's maps, which PEFT reads (Hu et al., 2021)",
        usual_rank=8,  # PEFT's
        most_rank=256,
        folds=True,
    ),
    "norm": AdapterEntry(
        "rekindle.adapters.deltas:NormBlock",
        "the LayerNorms of the blocks (Basu et al., 2023)",
        folds=True,
        moves_base=True,
    ),
    "bias": AdapterEntry(
        "rekindle.adapters.deltas:BiasBlock",
        "the biases of the blocks (BitFit, Ben Zaken et al., 2022)",
        folds=True,
        moves_base=True,
    ),
}


def kinds_that_fold(folds: bool = True) -> str:
    """Return the names of the kinds that fold into the weights, or of those that do not, for messages and help."""
    return ", ".join(name for name, entry in ADAPTERS.items() if entry.folds is folds)
