# SPDX-License-Identifier: Apache-2.0
"""The protocols of whole images, as a comparison runs them: one reader, shared features, files that can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rekindle
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.result import read_result, read_rows
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import save_tiny

SETTINGS: dict[str, Any] = {
    "knn": {"size_px": 16, "k": 3},
    "one_shot": {"size_px": 16, "queries": 2, "episodes": 10},
    "linear_probe": {"size_px": 16, "epochs": 10},
    "finetune": {"size_px": 16, "steps": 3, "warmup_steps": 1, "batch_size": 4},
    "cka": {"size_px": 16},
}


def test_models_are_compared_and_share_their_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    plain = FeatureExtractor.extract

    def counting(self: FeatureExtractor, images: object, *rest: object) -> object:
        passes.append(len(images))  # type: ignore[arg-type]
        return plain(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureExtractor, "extract", counting)
    base, model = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "model", seed=1)
    out = tmp_path / "out"
    names = [name.replace("_", "-") for name in SETTINGS]
    data = write_classes(tmp_path / "data")
    found = rekindle.compare(base, [model], data, protocol=names, seeds=2, resamples=100, out=str(out), **SETTINGS)
    assert [row.metric for row in found.rows] == ["top-1", "accuracy", "top-1", "top-1", "CKA of the last two blocks"]
    for row in found.rows:
        assert row.verdict.low - 1e-9 <= row.verdict.difference <= row.verdict.high + 1e-9
    # For each model: knn, one-shot and linear-probe read 20 + 15 images once, cka 15 images through all blocks.
    assert sum(passes) == 2 * (20 + 15 + 15)
    for path in out.glob("*-s1.json"):
        result = read_result(path)
        items, rows = read_rows(path.with_suffix(".csv"), result)
        assert len(items) == (10 if result.protocol == "one-shot" else 15)
        assert result.score.value(rows) == pytest.approx(result.metrics[result.score.name])
        assert np.isfinite(rows).all()
