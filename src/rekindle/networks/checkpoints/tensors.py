# SPDX-License-Identifier: Apache-2.0
"""Converted tensors into a network, with an account of every one; and our own files out again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock
from rekindle.networks.checkpoints.reading import OWN_KEY


@dataclass(frozen=True)
class MatchReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        matched: names of the network that were loaded.
        missing: names of the network that the checkpoint does not hold.
        unexpected: names of the checkpoint that the network does not have.
        ignored: names of the checkpoint that belong to heads, decoders and wrappers.
        fresh: names of the network that the checkpoint cannot hold and that start from random values.
        mismatched: "name (file [..], network [..])" for tensors of another shape.

    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if every tensor of the network was found and none was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched) + len(self.fresh)
        parts = [f"matched {len(self.matched)} of {total} tensors"]
        parts += [
            f"{len(getattr(self, kind))} {kind}" for kind in ("missing", "mismatched", "unexpected", "fresh", "ignored")
        ]
        return "; ".join(part for part in parts if not part.startswith("0 "))


def load_matching(
    network: nn.Module,
    state: Mapping[str, Tensor],
    ignored: tuple[str, ...] = (),
    fresh: tuple[str, ...] = (),
) -> MatchReport:
    """Copy the tensors that fit into `network` and report on all; the caller decides whether that will do."""
    own = network.state_dict()
    fitting = {n: t for n, t in state.items() if n in own and own[n].shape == t.shape}
    network.load_state_dict(fitting, strict=False)
    return MatchReport(
        matched=tuple(n for n in own if n in fitting),
        missing=tuple(n for n in own if n not in state and n not in fresh),
        unexpected=tuple(n for n in state if n not in own),
        ignored=ignored,
        fresh=fresh,
        mismatched=tuple(
            f"{n} (file {list(state[n].shape)}, network {list(t.shape)})"
            for n, t in own.items()
            if n in state and n not in fitting
        ),
    )


def require_complete(report: MatchReport, source: str) -> None:
    """Raise RequestError for a partial match, naming some of the tensors and the option that accepts it."""
    if report.is_complete:
        return
    kinds = {
        "missing": report.missing,
        "of another shape": report.mismatched,
        "unexpected": report.unexpected,
    }
    listed = [
        f"{kind}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    raise RequestError(
        f"{source} fits the network only in part ({report}). {'; '.join(listed)}. "
        "Name another architecture with --network.arch; --network.allow-partial loads what fits"
    )


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise RequestError, naming the first tensor, for weights that are NaN or infinite: features of them mean nothing."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        count = int((~state[bad[0]].isfinite()).sum())
        others = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise RequestError(
            f"{source}: {bad[0]} has {count} of {state[bad[0]].numel()} numbers that are NaN or infinite{others}; the file is "
            "damaged, or its training had failed: take an earlier checkpoint"
        )


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names: the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(backbone: Backbone, path: Path) -> None:
    """Write a backbone to a self-describing `.safetensors` file that `create_backbone` reads back as it was.

    Raises:
        ValueError: if something was put around the blocks, whose tensors other readers would not understand.

    """
    if any(isinstance(block, ComposedBlock) for block in backbone.vit.blocks):
        raise ValueError("this backbone has adapters; a plain checkpoint cannot hold them, save the run instead")
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in backbone.state_dict().items()}
    save_file(tensors, path, metadata={OWN_KEY: json.dumps(backbone.identity.to_dict())})
