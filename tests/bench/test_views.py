# SPDX-License-Identifier: Apache-2.0
"""The sides of the views bench on two small images, and the parity that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rekindle.bench.peers.torchvision_views import TorchvisionViews, parity, pipeline
from rekindle.bench.views import Ours, OursDevice, decoded, views_of
from rekindle.data.decoding import read_image
from tests.engine.running import write_images
from tests.views.scenes import noise, scene

CASE: dict[str, Any] = {
    "num_images": 2,
    "images": "",
    "height": 60,
    "width": 80,
    "seed": 3,
    "threads": 1,
    "device": "cpu",
    "views": {"global_size_px": 32, "local_size_px": 16, "num_local": 3},
}


@pytest.mark.parametrize("side", [Ours, OursDevice, TorchvisionViews])
def test_a_side_makes_the_views_of_every_image(side: Any) -> None:
    contender = side(CASE)
    assert contender.run() == 2
    assert contender.run() == 2
    assert contender.facts()


def test_the_albumentations_side_makes_the_views_of_every_image() -> None:
    pytest.importorskip("albumentations")
    from rekindle.bench.peers.albumentations_views import AlbumentationsViews, AliasedViews

    for side in (AlbumentationsViews, AliasedViews):
        assert side(CASE).run() == 2


def test_images_are_made_from_the_seed_or_taken_from_the_source(tmp_path: Path) -> None:
    made, again, other = decoded(CASE), decoded(CASE), decoded({**CASE, "seed": 4})
    assert [tuple(image.shape) for image in made] == [(3, 60, 80)] * 2
    assert made[0].stride() == (1, 240, 3)  # as decoders write it
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], other[0])
    folder = write_images(tmp_path / "images", 3)
    assert torch.equal(decoded({**CASE, "images": str(folder)})[1], read_image(str(folder / "01.png")))


def test_the_peer_makes_bytes_of_the_sizes_that_are_asked_for() -> None:
    picture = Ours(CASE)._images[0]
    from torchvision.transforms.functional import to_pil_image

    for kind, side in ((0, 32), (1, 32), (2, 16)):
        view = pipeline(views_of(CASE), kind)(to_pil_image(picture))
        assert view.dtype == torch.uint8
        assert view.shape == (3, side, side)


def test_every_operation_of_ours_is_within_a_level_of_torchvision_and_pil() -> None:
    for pictures in ([scene(120, 160, 1), scene(90, 90, 2)], [noise(120, 160)]):
        table = parity(pictures, side=64)
        assert len(table) >= 15
        for name, value in table.items():
            # PIL turns the hue in 256 steps and blurs with boxes: on harsh pictures that alone is more than a level.
            assert value < (1.7 if "PIL" in name else 1.0), (name, value)
        assert table["brightness 1.3"] > 0  # it does compare
        assert table["solarise"] == 0
