# SPDX-License-Identifier: Apache-2.0
"""What stands in for the reader's own images, data and models, and what makes a run small. This is all that is substituted."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from tests.documents.reading import ROOT

SIDE_PX = 64
DOMAIN = "field"
MODEL = "vit_small_patch16_224.dino"

SMALL: dict[str, dict[str, Any]] = {
    "pretrain": {
        "steps": 2,
        "batch_size": 4,
        "views": {"global_size_px": 64, "local_size_px": 32, "num_local": 2},
        "data": {"num_workers": 0},
        "engine": {"tensorboard": False},
    },
    "compare": {
        "seeds": 1,
        "resamples": 100,
        "linear_seg": {"size_px": SIDE_PX, "steps": 5, "warmup_steps": 1},
        "dense_retrieval": {"size_px": SIDE_PX, "memory_size": 256},
    },
}
"""Command and call -> options that make it end in seconds. The documented ways: `pretrain` gets a run file (`--config`,
`config=`), over which what the document says wins; `compare` gets what the document leaves out."""


@dataclass(frozen=True)
class StandIn:
    """What is there instead of the reader's own: in words, and made at a place."""

    what: str
    make: Callable[[Path], None]


def _images(place: Path) -> None:
    from rekindle.data.scenes import write_scenes

    write_scenes(place, DOMAIN, {"train": 12}, size_px=SIDE_PX, with_masks=False)


def _labelled(place: Path) -> None:
    from rekindle.data.scenes import write_scenes

    write_scenes(place, DOMAIN, {"train": 12, "val": 6}, size_px=SIDE_PX)


def _image(place: Path) -> None:
    from PIL import Image

    Image.linear_gradient("L").resize((320, 320)).convert("RGB").save(place)


def _run(place: Path) -> None:
    import rekindle

    images = place.parent / "images"
    _images(images)
    rekindle.pretrain(images=images, backbone=MODEL, out=place, **SMALL["pretrain"])


STAND_INS: Mapping[str, StandIn] = {
    "my_images": StandIn("12 drawn scenes of 64 px", _images),
    "my_labelled_data": StandIn("12 drawn scenes and 6 more, with masks", _labelled),
    "image.jpg": StandIn("a grey ramp of 320 px", _image),
    "photo.jpg": StandIn("a grey ramp of 320 px", _image),
    "runs/mine": StandIn("a run of two steps on 12 drawn scenes", _run),
    "runs/a": StandIn("the same", _run),
    "runs/b": StandIn("the same", _run),
    "runs/c": StandIn("the same", _run),
}
"""Name in a document -> what is there instead. A name that the block itself writes (`--out NAME`) is left to it."""
HUB: Mapping[str, tuple[str, str]] = {MODEL: ("timm", "drawn weights in the place where the hub's would lie")}
"""Name on the model hub -> its owner there, and what is loaded instead."""
OWN = ("bases", "examples", "scripts")
"""Folders of this repository that documents name; blocks see them where they are."""


class Stage:
    """Makes folders in which blocks run; what stands in is made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0

    def folder(self, text: str) -> Path:
        """Return a new folder with all that a text names, and does not write itself."""
        self._count += 1
        folder = self._root / f"block-{self._count}"
        folder.mkdir()
        for name in OWN:
            (folder / name).symlink_to(ROOT / name)
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL["pretrain"]))
        for name in names_in(text):
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            made = self._made(STAND_INS[name].make)
            if made.is_dir():
                shutil.copytree(made, place)
            else:
                shutil.copy(made, place)
        return folder

    def _made(self, make: Callable[[Path], None]) -> Path:
        place = self._root / "made" / make.__name__ / "it.jpg"
        if not place.exists():
            place.parent.mkdir(parents=True)
            with self.hub():
                make(place)
        return place

    @contextlib.contextmanager
    def hub(self) -> Iterator[None]:
        """No network; the hub's cache holds what stands in for `HUB`."""
        import timm
        from safetensors.torch import save_file

        cache = self._root / "hub"
        for name, (owner, _) in HUB.items():
            repository = cache / f"models--{owner}--{name}"
            if not repository.exists():
                snapshot = repository / "snapshots" / "drawn"
                snapshot.mkdir(parents=True)
                (repository / "refs").mkdir()
                (repository / "refs" / "main").write_text("drawn")
                save_file(timm.create_model(name, num_classes=0).state_dict(), snapshot / "model.safetensors")
        constants = "huggingface_hub.constants"
        with patch(f"{constants}.HF_HUB_OFFLINE", True), patch(f"{constants}.HF_HUB_CACHE", str(cache)):
            yield


def names_in(text: str) -> list[str]:
    """The names of `STAND_INS` in a text that it does not write itself."""
    return [
        name
        for name in STAND_INS
        if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.-])", text)
        and not re.search(rf"out[= ]\s*[\"']?{re.escape(name)}(?![\w/.-])", text)
    ]


def small_command(arguments: Sequence[str]) -> list[str]:
    """A command with what makes it small."""
    command, *rest = arguments
    if command == "pretrain":
        return [command, "--config", "small.yaml", *rest]
    more: list[str] = []
    for name, value in _flat(SMALL.get(command, {})).items():
        flag = f"--{name.replace('_', '-')}"
        if not any(word.partition("=")[0] == flag for word in rest):
            more += [flag, str(value)]
    return [command, *rest, *more]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    from rekindle.core.option_trees import leaves

    found = {}
    for name in leaves(tree):
        value: Any = tree
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


@contextlib.contextmanager
def small_calls() -> Iterator[None]:
    """`rekindle.pretrain` and `rekindle.compare` with what makes them small."""
    import rekindle

    pretrain = functools.partial(rekindle.pretrain, config="small.yaml")
    compare = functools.partial(rekindle.compare, **SMALL["compare"])
    with patch.object(rekindle, "pretrain", pretrain), patch.object(rekindle, "compare", compare):
        yield
