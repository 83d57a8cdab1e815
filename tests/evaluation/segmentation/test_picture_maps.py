# SPDX-License-Identifier: Apache-2.0
"""scripts/picture_maps.py: class maps of several models, of images that nobody chose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.training.predicted_maps import PredictedMaps
from tests.evaluation.toy import save_tiny, write_data
from tests.running_scripts import function_of, run_script


def test_every_model_gets_a_column_and_the_images_one_where_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    models = [f"{name}={save_tiny(tmp_path / name, seed)}" for seed, name in enumerate(("one", "other"))]
    widths = []
    for extra in ([], ["--with-images"]):
        out = tmp_path / f"{len(extra)}.png"
        run_script("picture_maps", *models, "--data", data, "--out", out, "--size-px", 16, "--steps", 30, *extra)
        widths.append(imread(out).shape[1])
        assert "one: mIoU" in (told := capsys.readouterr().out) and "other: mIoU" in told
    assert widths[1] / widths[0] == pytest.approx(4 / 3, abs=0.01)  # label and two models; and the image


def test_images_are_spread_evenly_over_the_first_models_ranking(tmp_path: Path) -> None:
    """Six images, the i-th with i of six columns right: where three are asked for, ranks 2, 4 and 6 are shown."""
    data = SegmentationFolder(write_data(tmp_path / "data", num_test=6), "val")
    maps, worse = PredictedMaps(data, keep=6), PredictedMaps(data, keep=6)
    for index in range(6):
        label = data.mask(index)
        right = torch.arange(label.shape[1]) < 8 * index
        maps.count(index, torch.where(right, label, (label + 1) % 3), label)
        worse.count(index, (label + 1) % 3, label)
    figure = function_of("picture_maps", "draw")({"mine": maps, "other": worse}, data, 3, with_images=False)
    titles = [panel.get_title() for panel in figure.axes]
    ranked = [f"mine: {100 * kept.iou:.0f} %" for kept in maps.worst]
    assert titles[1::3] == [ranked[1], ranked[3], ranked[5]] and titles[2::3] == ["other: 0 %"] * 3
