# SPDX-License-Identifier: Apache-2.0
"""The benches, their sides and their peers, as `module:Class` strings that are imported in a side's own process. Torch-free."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from rekindle.bench.options import BenchOptions
from rekindle.core.errors import RequestError, unknown_name

VIT_S = "vit:width=384,depth=12,heads=6,patch=16,img=224"
TINY = "vit:width=64,depth=2,heads=2,patch=16,img=224"
LIMIT = "limit: matrix product"
"""Label of the side that measures the machine rather than a program."""

PACKAGES: dict[str, str] = {
    "albumentations": "albumentations",
    "lightly": "lightly",
    "lightly-train": "lightly_train",
    "lightly-train-dinov2": "lightly_train",
    "torchvision": "torchvision",
}
"""Peer -> the module that it needs."""

DISTRIBUTIONS: dict[str, str] = {"lightly-train-dinov2": "lightly-train"}
"""Peer -> what pip calls it, where that is another name: a second side of a package that is a peer already."""


@dataclass(frozen=True)
class Bench:
    """One thing to measure.

    Attributes:
        summary: what a round is.
        ours: label -> side of ours; the first is what the others are compared with.
        peers: name of a peer -> label -> its side.
        runner: "module:function" where a bench has a course of its own instead of sides in turn.
        limit: measure the machine's matrix product as well.
        num_images, rounds, backbone: what it takes unless told.
        shown: facts to print below the table.
    """

    summary: str
    ours: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    runner: str = ""
    limit: bool = False
    num_images: int = 16
    rounds: int = 5
    backbone: str = VIT_S
    shown: tuple[str, ...] = ()


BENCHES: dict[str, Bench] = {
    "views": Bench(
        "all views of decoded images, with the whole photometric chain",
        ours={"rekindle": "rekindle.bench.views:Ours", "rekindle, batched": "rekindle.bench.views:OursDevice"},
        peers={
            "torchvision": {"torchvision": "rekindle.bench.peers.torchvision_views:TorchvisionViews"},
            "albumentations": {
                "albumentations": "rekindle.bench.peers.albumentations_views:AlbumentationsViews",
                "albumentations, aliased": "rekindle.bench.peers.albumentations_views:AliasedViews",
            },
        },
        shown=("antialias",),
    ),
    "step": Bench(
        "one optimizer step on fixed views",
        ours={"rekindle dino": "rekindle.bench.step:OursDino", "rekindle glare": "rekindle.bench.step:OursGlare"},
        peers={
            "lightly-train": {"lightly-train dino": "rekindle.bench.peers.lightly_train_step:LightlyTrainDino"},
            "lightly-train-dinov2": {
                "lightly-train dinov2": "rekindle.bench.peers.lightly_train_step:LightlyTrainDinov2"
            },
            "lightly": {"lightly dino": "rekindle.bench.peers.lightly_step:LightlyDino"},
        },
        limit=True,
        shown=("train", "trained_parameters", "images_at_a_time", "optimizer"),
    ),
    "epoch": Bench(
        "two epochs of training (all weights) with data loading, decoded images kept or not",
        ours={
            "images kept": "rekindle.bench.epoch:Kept",
            "decoded each time": "rekindle.bench.epoch:Decoded",
        },
        runner="rekindle.bench.epoch:run",
        num_images=64,
        rounds=3,
        shown=("data_wait",),
    ),
    "t100": Bench(
        "minutes of 100 epochs on adapters, from two: UDI, FLSL and GLARE (GLARE, table 8)",
        ours={
            "UDI": "rekindle.bench.t100:Udi",
            "FLSL": "rekindle.bench.t100:Flsl",
            "GLARE": "rekindle.bench.t100:Glare",
        },
        runner="rekindle.bench.t100:run",
        num_images=64,
        rounds=3,
        shown=("T100",),
    ),
    "extract": Bench("features of one batch", ours={"rekindle": "rekindle.bench.extract:Ours"}, limit=True),
    "start": Bench(
        "from the command to the first completed step, for growing numbers of files",
        runner="rekindle.bench.start:run",
        num_images=20_000,
        rounds=3,
        backbone=TINY,
        shown=("split",),
    ),
}


GAIN = "gain"
"""The bench that has options of its own, `rekindle.bench.gain`, and so is no entry above."""


def bench_of(options: BenchOptions) -> Bench:
    """The bench that is asked for. Raises RequestError for an unknown name."""
    if not options.name:
        raise RequestError(f"say what to measure: {', '.join((*BENCHES, GAIN))}")
    if options.name not in BENCHES:
        raise unknown_name("bench", options.name, (*BENCHES, GAIN))
    return BENCHES[options.name]


def sides_of(options: BenchOptions) -> dict[str, str]:
    """Label -> "module:Class" of all sides that are asked for, ours first.

    Raises: RequestError for a bench, a method or a peer that is unknown, not installed, or has no side in this bench.
    """
    bench = bench_of(options)
    sides = dict(bench.ours)
    if options.name == "step" and options.method is not None:
        known = {label.removeprefix("rekindle "): label for label in bench.ours}
        if options.method not in known:
            raise unknown_name("method of this bench", options.method, known)
        sides = {known[options.method]: sides[known[options.method]]}
    for peer in dict.fromkeys(options.peer):
        sides |= _peer_sides(options.name, bench, peer)
    return sides | ({LIMIT: "rekindle.bench.limit:MatrixProduct"} if bench.limit else {})


def _peer_sides(name: str, bench: Bench, peer: str) -> Mapping[str, str]:
    if peer not in PACKAGES:
        raise unknown_name("peer", peer, PACKAGES)
    if peer not in bench.peers:
        able = f"peers of this bench: {', '.join(sorted(bench.peers))}" if bench.peers else "it has no peers"
        where = [other for other, b in BENCHES.items() if peer in b.peers]
        hint = f"; {peer} is a peer of: {', '.join(where)}" if where else ""
        raise RequestError(f"--peer {peer}: bench {name} has no side for it; {able}{hint}")
    if importlib.util.find_spec(PACKAGES[peer]) is None:
        raise RequestError(
            f"--peer {peer} is not installed in this environment; install it beside rekindle with: "
            f"pip install {DISTRIBUTIONS.get(peer, peer)} "
            "(a fresh environment avoids clashes of versions), and run the bench from there"
        )
    return bench.peers[peer]
