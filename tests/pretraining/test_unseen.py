# SPDX-License-Identifier: Apache-2.0
"""Images that are not learnt from: the method's figures and pictures are of them, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.core.option_trees import nested
from rekindle.core.progress import Progress
from rekindle.data.images import find_images
from rekindle.methods import METHODS
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import pretrain
from rekindle.pretraining.unseen import UnseenLoss
from tests.contracts.test_methods import build
from tests.engine.running import TINY, assert_same_training, write_images

GLARE = [name for name in TINY if name.startswith("glare.")]
LOCA = {"loca.num_prototypes": 32, "loca.head_hidden": 32, "loca.head_bottleneck": 16}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("seen") / "images")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour each, unlike the others."""
    folder = tmp_path_factory.mktemp("unseen") / "images"
    folder.mkdir()
    for place in range(5):
        Image.new("RGB", (56, 48), (40 * place, 250 - 40 * place, 0)).save(folder / f"{place}.png")
    return folder


def asked(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    flat = {name: value for name, value in TINY.items() if name not in GLARE} | LOCA
    flat |= {"method": "loca", "images": str(images), "out": str(out), "views.num_local": 2}
    return nested(flat | {k.replace("__", "."): v for k, v in changes.items()})


def test_locas_position_accuracy_is_measured_on_images_that_are_not_learnt_from(
    images: Path, others: Path, tmp_path: Path
) -> None:
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    pretrain(resolve({}, asked(images, plain)))
    request = asked(images, probed, probe=("unseen",), every=3, unseen=str(others), probe_images=4)
    pretrain(resolve({}, request))
    assert_same_training(plain, probed)
    found = [json.loads(line) for line in (probed / "probes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [0, 3, 6]
    for line in found:
        assert 0 <= line["unseen/position_accuracy"] <= 1 and line["unseen/loss"] > 0
        assert {"unseen/position", "unseen/cluster", "unseen/memax"} <= set(line)
    assert found[0]["unseen/loss"] != found[-1]["unseen/loss"]
    assert not (probed / "best").exists()


def test_pictures_show_unseen_images_where_there_are_some(images: Path, others: Path, tmp_path: Path) -> None:
    for name, unseen in (("seen", ""), ("unseen", str(others))):
        pretrain(
            resolve({}, asked(images, tmp_path / name, unseen=unseen, steps=1, views__jitter_p=0.0, views__grey_p=0.0))
        )
    shown = {
        name: np.asarray(Image.open(tmp_path / name / "pictures" / "locations.png").convert("RGB")).astype(int)
        for name in ("seen", "unseen")
    }
    without_blue = {name: float(((v[..., 2] < 8) & (v.max(axis=-1) > 60)).mean()) for name, v in shown.items()}
    assert without_blue["unseen"] > 0.1 > 0.05 > without_blue["seen"]


@pytest.mark.parametrize("name", METHODS)
def test_measuring_leaves_every_method_as_it_was(name: str, images: Path) -> None:
    method = build(name).train()
    options = resolve(
        {}, {"views": {"global_size_px": 32, "local_size_px": 16, "num_local": 2}, "probe_images": 3}
    ).options
    probe = UnseenLoss(options, find_images(images), method, Progress(6, 6), torch.device("cpu"))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    first, second = probe.measure(), probe.measure()
    assert first == second and first["unseen/loss"] == first["unseen/loss"]  # no NaN, and the same each time
    method.after_step(Progress(0, 6))
    moved = {
        key
        for key, value in method.state_dict().items()
        if key.startswith("centres") and not torch.equal(value, before[key])
    }
    assert not moved and modes == [module.training for module in method.modules()]
    assert all(parameter.grad is None for parameter in method.parameters())


def test_images_that_are_learnt_from_are_no_unseen_ones(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"--unseen .*: 1 of its 1 images are learnt from as well, .*03\.png for example"
    ):
        pretrain(resolve({}, asked(images, tmp_path / "run", unseen=str(images / "03*.png"))))
    with pytest.raises(RequestError, match=r"--unseen: images = '.*nowhere'"):
        pretrain(resolve({}, asked(images, tmp_path / "run", unseen=str(tmp_path / "nowhere"))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--probe unseen needs images that are not learnt from: give --unseen SRC"),
        ({"devices": 2}, "use --devices 1"),
    ],
)
def test_what_the_probe_needs_is_said_before_anything_is_loaded(
    changes: dict[str, Any], message: str, images: Path, others: Path, tmp_path: Path
) -> None:
    unseen = str(others) if changes else ""
    with pytest.raises(RequestError, match=message):
        pretrain(resolve({}, asked(images, tmp_path / "run", probe=("unseen",), unseen=unseen, **changes)))
