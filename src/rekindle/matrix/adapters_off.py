# SPDX-License-Identifier: Apache-2.0
"""Adapters switched off: whether trained models are then what they started from, bit for bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from rekindle.adapters.attach import adapters_enabled
from rekindle.adapters.saved import load_backbone
from rekindle.core.options import Options
from rekindle.core.rng import generator
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.matrix.grid import Grid
from rekindle.matrix.starts import start_tree
from rekindle.matrix.table import Table
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock
from rekindle.networks.tokens import Tokens

PATCHES = 6
"""Side of the test images, in patches."""


class AdaptersOff(Options):
    """One trained model with its adapters switched off, beside what it started from."""

    run: str
    """The run."""
    has_adapters: bool
    """Without any there is nothing to switch off."""
    is_base: bool | None
    """All tokens of two images of noise equal the base's bit for bit; None without adapters."""
    is_base_of_start: bool
    """The start has adapters itself: then both are compared without theirs."""

    @property
    def sentence(self) -> str:
        """One sentence."""
        if self.is_base is None:
            return f"{self.run} has no adapters to switch off"
        base = "the start without its own adapters" if self.is_base_of_start else "the start"
        word = "is" if self.is_base else "is NOT"
        return f"{self.run} with its adapters off {word} {base}, bit for bit"


def adapters_off(grid: Grid, table: Table, out: Path, watcher: Watcher) -> list[AdaptersOff]:
    """Check every finished cell of a table. Raises: RequestError, RekindleError as loading does."""
    found = []
    for name in grid.starts:
        tree = start_tree(grid, name)
        options = grid.measuring(grid.columns()[0], tree)
        base, _ = load_backbone(str(tree["backbone"]), options.network, init=options.init)
        for cell in table.cells:
            if cell.key.start == name and cell.state == "finished":
                trained, _ = load_backbone(out / cell.run)
                found.append(compared(base, trained, cell.run))
                watcher.message(found[-1].sentence)
    return found


def compared(base: Backbone, trained: Backbone, run: str) -> AdaptersOff:
    """Compare the tokens of both on the same images, in float32 on the CPU, all adapters off."""
    adapted = _is_adapted(trained)
    same = None
    if adapted:
        first, second = (_plain_tokens(model) for model in (base, trained))
        same = all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return AdaptersOff(run=run, has_adapters=adapted, is_base=same, is_base_of_start=adapted and _is_adapted(base))


def _is_adapted(model: Backbone) -> bool:
    return any(isinstance(block, ComposedBlock) for block in model.vit.blocks)


def _plain_tokens(model: Backbone) -> list[Tokens]:
    side = PATCHES * model.patch_size
    images = torch.randint(0, 256, (2, 3, side, side), generator=generator(0, "adapters-off")).to(torch.uint8)
    with ExitStack() as stack:
        stack.enter_context(adapters_enabled(model, False))
        return FeatureExtractor(model).extract(images, range(model.depth))


def _equal(a: Tokens, b: Tokens) -> bool:
    if (a.cls is None) != (b.cls is None) or (
        a.cls is not None and b.cls is not None and not torch.equal(a.cls, b.cls)
    ):
        return False
    return torch.equal(a.registers, b.registers) and torch.equal(a.patches, b.patches)
