# SPDX-License-Identifier: Apache-2.0
"""The protocols without training, as a comparison runs them: one reader, shared features, files that can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rekindle
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.result import read_result, read_rows
from tests.evaluation.toy import TINY, save_tiny, write_data, write_noise

OBJECTS = ["prompted-seg", "similarity", "clustering"]
SIZES: dict[str, Any] = {"prompted_seg": {"size_px": 32}, "similarity": {"size_px": 32}, "clustering": {"size_px": 32}}


def write_coco(root: Path) -> Path:
    """Three images of noise with two boxes each."""
    source = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(3):
        path = root / "val2017" / f"{i:012}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        images.append({"id": i, "file_name": path.name, "height": 40, "width": 48})
        for category, left in ((1, 2), (3, 26)):
            box = [left, 4, left + 20, 4, left + 20, 30 + i, left, 30 + i]
            annotations.append(
                {"id": 2 * i, "image_id": i, "category_id": category, "segmentation": [box], "iscrowd": 0}
            )
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return root


def test_models_are_compared_on_cocos_layout_and_share_their_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    plain = FeatureExtractor.extract

    def counting(self: FeatureExtractor, images: object, *rest: object) -> object:
        passes.append(len(images))  # type: ignore[arg-type]
        return plain(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureExtractor, "extract", counting)
    base, model = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "model", seed=1)
    data, out = write_coco(tmp_path / "coco"), tmp_path / "out"
    found = rekindle.compare(
        base, [model], data, protocol=OBJECTS, split="val2017", seeds=2, resamples=100, out=str(out), **SIZES
    )
    assert [row.metric for row in found.rows] == ["mIoU@opt", "overlap", "clustering mIoU"]
    assert all(row.verdict.low <= row.verdict.difference <= row.verdict.high for row in found.rows[:2])
    assert sum(passes) == 2 * 3  # three images, once for each model
    for path in out.glob("*-s1.json"):
        result = read_result(path)
        items, rows = read_rows(path.with_suffix(".csv"), result)
        assert len(items) == 3
        assert result.score.value(rows) == pytest.approx(result.metrics[result.score.name])


def test_variance_needs_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_noise(tmp_path / "data")
    settings = {"size_px": 32, "align_px": 8, "num_images": 2, "num_views": 4}
    result = rekindle.evaluate(TINY, "variance", root / "images", init="random", variance=settings)
    assert result.metrics["patch tokens (variance)"] > 0
    assert result.counts == {"images": 2, "views": 4}


def test_masks_in_folders_are_read_alike(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    for name, values in zip(OBJECTS, SIZES.values(), strict=True):
        out = str(tmp_path / f"{name}.json")
        result = rekindle.evaluate(TINY, name, root, init="random", out=out, **{name.replace("-", "_"): values})
        assert result.counts["images"] == 3
