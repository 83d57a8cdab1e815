# SPDX-License-Identifier: Apache-2.0
"""Pictures that methods draw when training has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rekindle
from rekindle.core.option_trees import nested
from rekindle.core.progress import Progress
from rekindle.methods.loca import Loca
from rekindle.methods.loca_options import LocaOptions
from rekindle.methods.mmc import Mmc, MmcOptions
from rekindle.methods.shared.corruption import new_pixel_head, restored_by_layer
from rekindle.views.marking import BLUE, RED
from tests.curves import drawn
from tests.engine.running import TINY, write_images
from tests.methods.scene import tiny_backbone, tiny_batch

LOCA_ROWS = ["query", "all visible", "80% hidden", "nothing visible"]


def test_locations_show_the_true_box_and_every_patch_of_the_query() -> None:
    method = Loca(LocaOptions(num_prototypes=8, cluster_weight=0, reference_grid=4), tiny_backbone("all"))
    found = method.eval().pictures(tiny_batch(), Progress(step=3, total=3))
    rows = found["locations"]
    assert list(rows) == LOCA_ROWS
    for title in LOCA_ROWS[1:]:
        colours = rows[title].flatten(2)
        assert bool((colours == torch.tensor(RED)[None, :, None]).all(dim=1).any())
    assert bool((rows["all visible"].flatten(2) == torch.tensor(BLUE)[None, :, None]).all(dim=1).any())
    assert not torch.equal(rows["all visible"], rows["80% hidden"])


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"mask_ratio": 1.0}, ["query", "nothing visible"]),
        ({"position_mode": "single"}, None),
        ({"position_target": "box"}, None),
    ],
)
def test_variants_draw_what_they_can(changes: dict[str, Any], rows: list[str] | None) -> None:
    config = LocaOptions(num_prototypes=8, cluster_weight=0, reference_grid=4, **changes)
    found = Loca(config, tiny_backbone("all")).eval().pictures(tiny_batch(), Progress(step=3, total=3))
    assert (list(found["locations"]) if found else None) == rows


@pytest.mark.parametrize(
    ("method", "stem", "own"),
    [
        ("loca", "locations", {"loca.num_prototypes": 8}),
        ("mmc", "corruption", {"mmc.head_hidden": 8, "mmc.head_out": 4, "mmc.pixel_hidden": 8, "mmc.max_block": 0.6}),
        (
            "tec",
            "targets",
            {"tec.decoder_width": 16, "tec.decoder_heads": 2, "tec.blocks_per_group": 1, "tec.num_selected": 3},
        ),
        ("dino", None, {}),
    ],
)
def test_a_run_leaves_pictures_and_curves(tmp_path: Path, method: str, stem: str | None, own: dict[str, Any]) -> None:
    write_images(tmp_path / "images")
    kept = {k: v for k, v in TINY.items() if not k.startswith("glare.")}
    base = {
        "train": "all",
        "method": method,
        "images": str(tmp_path / "images"),
        "out": str(tmp_path / "run"),
        "steps": 3,
    }
    small = {"dino.num_prototypes": 16, "dino.head_hidden": 16} if method == "dino" else {}
    with drawn():
        rekindle.pretrain(**nested(kept | base | own | small))
    pictures = {p.stem: np.asarray(Image.open(p)) for p in (tmp_path / "run" / "pictures").glob("*.png")}
    assert set(pictures) == {"curves"} | ({stem} if stem else set()) | ({"layers"} if method == "mmc" else set())
    assert all(p.ndim == 3 and p.std() > 0 for p in pictures.values())


def test_the_last_block_restores_what_training_restores() -> None:
    """MMC, E13: layer 12 equals the training-time reconstruction, and blocks that change nothing change no picture."""
    backbone = tiny_backbone("all").eval()
    head = new_pixel_head(MmcOptions(pixel_hidden=8), backbone)
    views = tiny_batch().global_views.pixels[0]
    with torch.no_grad():
        found = restored_by_layer(head, backbone, views, (0, 1))
        tokens = backbone(views).patches.flatten(0, 2)
        slow = torch.zeros_like(views)
        for row, values in enumerate(head(tokens).view(len(views), -1, 8 * 8, 3)):
            for place, patch in enumerate(values):
                top, left = 8 * (place // 4), 8 * (place % 4)
                slow[row, :, top : top + 8, left : left + 8] = patch.view(8, 8, 3).permute(2, 0, 1)
        torch.testing.assert_close(found[1], slow)
        assert not torch.allclose(found[0], found[1])
        for parameter in backbone.vit.blocks[1].parameters():
            parameter.zero_()
        first, second = restored_by_layer(head, backbone, views, (0, 1))
    torch.testing.assert_close(first, second)


def test_errors_stand_beside_the_blocks() -> None:
    backbone = tiny_backbone("all")
    method = Mmc(MmcOptions(head_hidden=8, head_out=4, pixel_hidden=8, max_block=0.6), backbone).eval()
    with torch.no_grad():
        rows = method.pictures(tiny_batch(), Progress(step=3, total=3))["layers"]
    assert [title.partition(":")[0] for title in rows] == ["block 1", "block 2", "block 2 - 1"]
    assert all(views.dtype == torch.uint8 for views in rows.values())
