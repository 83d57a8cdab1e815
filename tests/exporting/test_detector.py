# SPDX-License-Identifier: Apache-2.0
"""Exported models in a real detector (TEC, table 7): examples/train_detector.py, as its user runs it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.cli import main
from tests.evaluation.toy import save_tiny

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "train_detector.py")
SMALL = ["--steps", "8", "--size-px", "64", "--channels", "16", "--batch-size", "1", "--lr", "1e-3"]


def detect(*words: object) -> None:
    with patch.object(sys, "argv", [EXAMPLE, *map(str, words)]):
        runpy.run_path(EXAMPLE, run_name="__main__")


def functions() -> dict[str, Any]:
    return runpy.run_path(EXAMPLE)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    assert main(["export", str(save_tiny(tmp_path / "run")), "--format", "timm", "--out", str(folder)]) == 0
    return folder


def write_coco(root: Path) -> Path:
    """Two images with a box and a triangle each."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in (1, 2):
        (root / "train").mkdir(parents=True, exist_ok=True)
        pixels = np.full((64, 64, 3), 90, np.uint8)
        pixels[8:24, 8:30] = (250, 20, 20)
        Image.fromarray(pixels).save(root / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        for category, outline in ((3, [8, 8, 30, 8, 30, 24, 8, 24]), (7, [34, 34, 60, 34, 34, 60])):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": [outline],
                    "bbox": [min(outline[::2]), min(outline[1::2]), 26, 26],
                    "area": 300,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "triangle"}]
    (root / "annotations").mkdir()
    told = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(told))
    return root


def test_a_detector_learns_on_it(tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss of the last step is well below that of the first, and the whole network has moved, not the heads alone."""
    detect(exported, *SMALL, "--out", tmp_path / "detector.pt")
    told = capsys.readouterr().out.splitlines()[-1].split()
    assert float(told[4]) < 0.8 * float(told[1])
    name = "backbone.model.blocks.0.attn.qkv.weight"
    before = functions()["detector"](exported, 3, size_px=64, channels=16).state_dict()
    assert not torch.equal(torch.load(tmp_path / "detector.pt", weights_only=True)[name], before[name])


def test_a_run_folder_gives_what_its_export_gives(tmp_path: Path, exported: Path) -> None:
    maps = []
    for folder in (tmp_path / "run", exported):
        torch.manual_seed(0)
        network = functions()["detector"](folder, 3, size_px=32, channels=16).eval()
        maps.append(network.backbone(torch.ones(1, 3, 32, 32))["8"])
    torch.testing.assert_close(maps[0], maps[1])


def test_the_pyramid_has_the_strides_of_vitdet(exported: Path) -> None:
    """Patches of 8 here, so half of strides 4, 8, 16, 32, 64."""
    network = functions()["detector"](exported, 3, size_px=64, channels=16).eval()
    maps = network.backbone(torch.randn(1, 3, 64, 96))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "4": (16, 32, 48), "8": (16, 16, 24), "16": (16, 8, 12), "32": (16, 4, 6), "64": (16, 2, 3)
    }  # fmt: skip


def test_annotations_of_coco_become_boxes_masks_and_classes(tmp_path: Path) -> None:
    samples, num_classes = functions()["labelled"](write_coco(tmp_path), "train")
    assert (len(samples), num_classes) == (2, 3)
    image, told = samples[0]
    assert image.shape == (3, 64, 64) and float(image.max()) <= 1.0
    assert told["labels"].tolist() == [1, 2]
    torch.testing.assert_close(told["boxes"][0], torch.tensor([8.0, 8.0, 29.0, 23.0]), atol=1.0, rtol=0)
    assert told["masks"].shape == (2, 64, 64) and told["masks"][0, 16, 20] == 1 and told["masks"][1, 16, 20] == 0
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("[[8, 8, 30, 8, 30, 24, 8, 24]]", '{"counts": [9], "size": [64, 64]}'))
    with pytest.raises(ValueError, match="annotation 1 has no polygons"):
        functions()["labelled"](tmp_path, "train")
