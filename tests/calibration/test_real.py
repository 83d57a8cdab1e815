# SPDX-License-Identifier: Apache-2.0
"""Small real models: the data that they are measured on, what spoils them, and the trials that are taken from their rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.calibration.real import ITEMS, Tables, _drawn, _of_protocol
from rekindle.calibration.real_data import BLURRED, FRAMES, SIDE, Sizes, blurred, crops, write_pool
from rekindle.calibration.real_models import NoisyExtractor, base
from rekindle.calibration.real_rows import FREE_OF_CHANCE, QUICK, SETTINGS, Table, measured
from rekindle.calibration.rules import Before, Now
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.scores.kinds import Means

FEW = Sizes(train=10, single=8, grouped=3, members=2)


def table(gain: float = 0.0, seeds: int = 6, seed: int = 0) -> Table:
    """Means of 60 scenes, of which the first 20 have four items."""
    source = np.random.default_rng(5)
    items = [f"s{scene:03}-{k}" for scene in range(60) for k in range(4 if scene < 20 else 1)]
    common = source.standard_normal(len(items))
    own = 0.2 * np.random.default_rng([seed, 6]).standard_normal((seeds, len(items)))
    rows = np.stack([common + own + gain, np.ones((seeds, len(items)))], axis=-1)
    return Table(Means(headline="score", names=["score"]), items, rows)


def test_every_protocol_is_set_and_the_quick_ones_are_some_of_them() -> None:
    assert set(SETTINGS) == set(PROTOCOLS)
    assert {*QUICK, *FREE_OF_CHANCE} < set(PROTOCOLS)


def test_a_film_starts_with_the_crop() -> None:
    first, second = crops("s000", "val", 0, 2, seed=0)
    assert [crop.name for crop in (first, second)] == ["s000-0", "s000-1"]
    assert len(first.frames) == len(first.masks) == FRAMES
    assert first.frames[0].shape == (SIDE, SIDE, 3) and first.depths.shape == (SIDE, SIDE)
    assert 0 < first.depths.min() < first.depths.max() < 7
    assert not np.array_equal(first.frames[0], second.frames[0])


def test_one_class_is_blurred_and_nothing_else() -> None:
    found = [crop for scene in range(12) for crop in crops(f"s{scene}", "val", scene, 1, seed=0)]
    spoilt = [blurred(crop) for crop in found]
    changed = [(a.frames[0] != b.frames[0]).any(axis=-1) for a, b in zip(found, spoilt, strict=True)]
    assert not any((own & (crop.masks[0] != BLURRED)).any() for own, crop in zip(changed, found, strict=True))
    assert any(own.any() for own in changed)


def test_labels_of_a_share_are_wrong_in_the_training_part_alone(tmp_path: Path) -> None:
    for version in ("plain", "labels flipped"):
        write_pool(tmp_path / version, FEW, version, seed=0)

    def same(split: str) -> list[bool]:
        names = sorted(path.name for path in (tmp_path / "plain" / "scenes" / "masks" / split).iterdir())
        folders = (
            tmp_path / "plain" / "scenes" / "masks" / split,
            tmp_path / "labels flipped" / "scenes" / "masks" / split,
        )
        return [(folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names]

    assert all(same("val")) and len(same("val")) == 11
    assert 1 <= sum(not kept for kept in same("train")) <= 9
    truth = json.loads((tmp_path / "plain" / "retrieval" / "pool" / "gnd_pool.json").read_text())
    assert len(truth["qimlist"]) == 11 and len(truth["imlist"]) == 10


def test_noise_takes_its_share_and_is_the_same_for_the_same_image() -> None:
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = base()
    plain, noisy = FeatureExtractor(backbone), NoisyExtractor(backbone, 0.5)
    together, alone = noisy.extract(images)[0].patches, noisy.extract(images[1:2])[0].patches
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    clean = plain.extract(images)[0].patches.flatten(0, 2)
    mixed = together.flatten(0, 2)
    kept = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(clean, mixed, strict=True)]).mean()
    assert float(kept) == pytest.approx(0.5**0.5, abs=0.05)
    assert float(mixed.std(dim=1).mean() / clean.std(dim=1).mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("protocol", ["knn", "image-retrieval"])
def test_a_protocol_is_measured_on_the_pool(protocol: str, tmp_path: Path) -> None:
    write_pool(tmp_path, FEW, "plain", seed=0)
    extractor = FeatureExtractor(base())
    found = measured(protocol, extractor, SharedFeatures(extractor), tmp_path, range(2))
    assert found.rows.shape[:2] == (1, len(found.items))
    assert len(set(found.scenes.tolist())) == int(found.is_first.sum())
    assert 0 < found.score.value(found.rows[0]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "one-shot"])
def test_every_protocol_is_measured_on_the_pool(protocol: str, tmp_path: Path) -> None:
    write_pool(tmp_path, Sizes(train=32, single=40, grouped=10, members=3), "plain", seed=0)
    extractor = FeatureExtractor(base())
    found = measured(protocol, extractor, SharedFeatures(extractor), tmp_path, range(2))
    assert len(found.rows) == (1 if protocol in FREE_OF_CHANCE else 2)
    assert np.isfinite([found.score.value(rows) for rows in found.rows]).all()


def test_a_trial_takes_single_items_or_whole_scenes() -> None:
    items, groups = _drawn(table(), False, np.random.default_rng(0))
    assert groups is None and len(items) == ITEMS and len(set(table().scenes[items].tolist())) == ITEMS
    items, groups = _drawn(table(), True, np.random.default_rng(0))
    assert groups is not None and np.bincount(groups).tolist() == [4] * 12


def test_cells_of_a_protocol_know_what_is_true() -> None:
    tables = Tables(table(), [table(seeds=1, seed=1 + k) for k in range(8)], {"worse": table(-2.0, seeds=2)})
    rules = [Before(100), Now(100)]
    for is_grouped in (False, True):
        seeds, trainings, spoilt = _of_protocol("linear-seg", tables, is_grouped, 8, 0, rules)
        assert (seeds.is_promised, trainings.is_promised, spoilt.is_promised) == (True, True, False)
        assert seeds.label.startswith("other evaluation seeds") and trainings.label.startswith("other training seeds")
        assert spoilt.effect == pytest.approx(-200.0, abs=5)
        assert spoilt.by("now").worse.value == 1.0 and spoilt.by("now").wrong.value == 0.0
        assert spoilt.units == (12 if is_grouped else 40)
    free = [*_of_protocol("knn", tables, False, 2, 0, rules)]
    assert [cell.label.split(",")[0] for cell in free] == ["other training seeds", "worse"]
