# SPDX-License-Identifier: Apache-2.0
"""From one patch to a mask: the worked case, nested predictions, prompts inside their targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.objects import open_objects
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.threshold_scores import BestThreshold
from rekindle.evaluation.segmentation.options import PromptedSegOptions
from rekindle.evaluation.segmentation.prompted_seg import PromptedSeg, central_patch, interior_patch, threshold_iou
from tests.evaluation.toy import ColourExtractor, tiny_backbone

Prompt = Literal["interior", "random", "centroid", "oracle"]
PROMPTS: list[Prompt] = ["interior", "random", "centroid", "oracle"]
TWO = ((255, 0, 0), (64, 247, 0))  # cosine 0.25


def write(root: Path, masks: dict[str, np.ndarray[Any, Any]], names: list[str], colours: Any = TWO) -> Path:
    """Masks, and images that show each class in its colour."""
    for stem, mask in masks.items():
        for kind, picture in (("images", np.asarray(colours, np.uint8)[mask % 255]), ("masks", mask)):
            path = root / kind / "val" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(path)
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


def square(side: int = 240, first: int = 80, last: int = 160) -> np.ndarray[Any, Any]:
    """Class 0 in the middle of class 1; 10 x 10 of 30 x 30 patches."""
    mask = np.ones((side, side), np.uint8)
    mask[first:last, first:last] = 0
    return mask


def outcome(root: Path, extractor: FeatureExtractor | None = None, seed: int = 0, **options: Any) -> Outcome:
    config = PromptedSegOptions(**{"size_px": 240, **options})
    made = PromptedSeg(config, extractor or ColourExtractor(), None, open_objects(root, "val"))
    made.check()
    made.prepare()
    return made.run(seed)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_worked_case(tmp_path: Path, prompt: Prompt) -> None:
    """An object of 10 x 10 patches, the rest at cosine 0.25: 100 / 900 below, 1 above; the best threshold is above."""
    found = outcome(write(tmp_path, {"a": square()}, ["thing", "background"]), prompt=prompt)
    for threshold in (0.0, 0.1, 0.2):
        assert found.metrics[f"mIoU@{threshold:g}"] == pytest.approx(100 / 900)
    for threshold in (0.3, 0.4, 0.9):
        assert found.metrics[f"mIoU@{threshold:g}"] == 1.0
    assert next(iter(found.metrics.items())) == ("mIoU@opt", 1.0)
    assert found.metrics["threshold (cosine)"] == 0.3
    assert found.counts == {"images": 1, "targets": 1, "without_patch": 0, "skipped_images": 0}


def test_constant_features_give_the_share_of_the_area(tmp_path: Path) -> None:
    found = outcome(write(tmp_path, {"a": square(first=80, last=140)}, ["thing", "background"], [(9, 9, 9)] * 2))
    assert [v for n, v in found.metrics.items() if n.startswith("mIoU")] == pytest.approx([60 * 60 / 240 / 240] * 11)


def test_iou_is_that_of_enlarged_predictions_without_what_counts_for_nothing() -> None:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 3, (32, 32), generator=source)  # 0 background, 1 target, 2 void
    cosines = torch.rand(5, 16, generator=source) * 2 - 1
    cells = pixels.reshape(4, 8, 4, 8).transpose(1, 2).reshape(16, -1)
    thresholds = torch.linspace(-0.9, 0.9, 7)
    found = threshold_iou(cosines, (cells == 1).sum(1).float(), (cells != 2).sum(1).float(), thresholds)
    for prompt in range(5):
        for number, threshold in enumerate(thresholds):
            enlarged = (cosines[prompt].reshape(4, 4) > threshold).repeat_interleave(8, 0).repeat_interleave(8, 1)
            enlarged = enlarged & (pixels != 2)
            expected = (enlarged & (pixels == 1)).sum() / (enlarged | (pixels == 1)).sum()
            assert float(found[prompt, number]) == pytest.approx(float(expected))
    ones = torch.ones(16)
    areas = [float((cosines[0] > t).sum()) for t in thresholds]  # predictions are nested in the threshold
    assert areas == sorted(areas, reverse=True)
    assert threshold_iou(cosines[:1], ones, ones, thresholds)[0].tolist() == pytest.approx([a / 16 for a in areas])


def test_interior_is_far_from_the_edge_and_turns_with_the_target() -> None:
    patches = torch.zeros(9, 9, dtype=torch.bool)
    patches[1:6, 2:9] = True  # 5 x 7
    assert divmod(interior_patch(patches), 9) == (3, 4)
    blob = torch.zeros(9, 9, dtype=torch.bool)
    blob[2:7, 1:6] = True
    for turns in range(4):
        turned = torch.rot90(blob, turns)
        place = torch.zeros(9, 9, dtype=torch.bool)
        place[4, 3] = True
        assert bool(torch.rot90(place, turns).flatten()[interior_patch(turned)])
    assert interior_patch(torch.ones(3, 3, dtype=torch.bool)) == 4  # the image's border is an edge too


def test_central_patch_lies_in_a_target_whose_centre_does_not() -> None:
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:4, 1:4] = False
    assert ring.flatten()[central_patch(ring)]
    assert central_patch(torch.ones(3, 5, dtype=torch.bool)) == 7


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_lie_in_their_target(tmp_path: Path, prompt: Prompt) -> None:
    made = PromptedSeg(
        PromptedSegOptions(size_px=240, prompt=prompt), ColourExtractor(), None,
        open_objects(write(tmp_path, {"a": square()}, ["thing", "background"]), "val"),
    )  # fmt: skip
    patches = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.2
    own = made._prompts(patches, (0, 0), 3)
    assert patches.flatten()[own].all()
    assert len(own) == {"random": 5, "oracle": int(patches.sum())}.get(prompt, 1)


def test_oracle_is_the_best_and_random_prompts_follow_the_seed(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    root = write(tmp_path, {"a": square(32, 8, 24)}, ["thing", "background"])
    Image.fromarray(source.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "images" / "val" / "a.png")
    network = FeatureExtractor(tiny_backbone())
    found = {p: outcome(root, network, size_px=32, prompt=p, num_random=1) for p in PROMPTS}
    best = {p: o.metrics["mIoU@opt"] for p, o in found.items()}
    assert best["oracle"] >= max(best.values())
    again = [outcome(root, network, seed=s, size_px=32, prompt="random", num_random=1).rows for s in (0, 1, 2, 3)]
    assert np.array_equal(again[0], found["random"].rows)
    assert any(not np.array_equal(again[0], rows) for rows in again[1:])


def test_averages_count_targets_categories_or_images(tmp_path: Path) -> None:
    """Image a: thing 1.0 and other 1.0; image b: thing alone, below 1 since half of its patches differ."""
    three = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first = square(48, 16, 32)
    first[:8, :8] = 2
    second = square(48, 16, 32)
    root = write(tmp_path, {"a": first, "b": second}, ["thing", "background", "other"], three)
    picture = np.asarray(three, np.uint8)[second]
    picture[16:32, 16:24] = 0, 0, 255
    Image.fromarray(picture).save(root / "images" / "val" / "b.png")
    values = {kind: outcome(root, size_px=48, average=kind) for kind in ("target", "category", "image")}
    assert values["target"].metrics["mIoU@opt"] == pytest.approx(2.5 / 3)
    assert values["category"].metrics["mIoU@opt"] == pytest.approx((0.75 + 1.0) / 2)
    assert values["category"].score.parts(values["category"].rows) == {"thing": 0.75, "other": 1.0}
    assert values["image"].metrics["mIoU@opt"] == pytest.approx((1.0 + 0.5) / 2)
    every = outcome(root, size_px=48, background_class="")
    assert every.counts["targets"] == 5


def test_instances_are_single_targets_and_small_ones_are_counted_out(tmp_path: Path) -> None:
    mask = np.ones((48, 48), np.uint8)
    mask[:8, :8] = mask[24:40, 24:40] = mask[20:22, 4:6] = 0
    root = write(tmp_path, {"a": mask, "empty": np.ones((48, 48), np.uint8)}, ["thing", "background"])
    found = outcome(root, size_px=48, unit="instance")
    assert found.counts == {"images": 1, "targets": 2, "without_patch": 1, "skipped_images": 1}
    assert found.items == ["a"]
    assert outcome(root, size_px=48).counts["targets"] == 1


def test_no_target_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    root = write(tmp_path, {"empty": np.ones((48, 48), np.uint8)}, ["thing", "background"])
    with pytest.raises(RequestError, match=r"no image has a target.*raise prompted_seg.size_px"):
        outcome(root, size_px=48)


@pytest.mark.parametrize("groups", [["all"], ["a", "b", "c"]])
def test_each_draw_has_its_own_best_threshold(groups: list[str]) -> None:
    source = np.random.default_rng(0)
    score = BestThreshold(thresholds=[0.0, 0.5], groups=groups)
    rows = source.random((2, 6, len(score.columns)))
    rows[..., 2::3] = source.integers(0, 3, rows[..., 2::3].shape)
    rows[:, 0, 2::3] += 1
    counts = source.multinomial(6, [1 / 6] * 6, size=5)
    counts[:, 0] += 1
    slow = [[score.value(np.repeat(side, count, axis=0)) for side in rows] for count in counts]
    assert score.over(rows, counts) == pytest.approx(np.array(slow))
    assert score.metrics(np.zeros((1, len(score.columns)))) == {}
    one = np.array([[0.2, 0.9, 1.0] * len(groups), [1.4, 0.6, 2.0] * len(groups)])
    assert score.metrics(one)["mIoU@opt"] == pytest.approx(1.6 / 3)
    assert score.metrics(one)["threshold (cosine)"] == 0.0


def test_every_target_has_its_line(tmp_path: Path) -> None:
    """Image, category, share of the area, where it was prompted, IoU at each threshold, the best one."""
    found = outcome(write(tmp_path, {"a": square(), "b": square(first=16, last=48)}, ["thing", "background"]))
    header, lines = found.tables["targets"]
    assert header[:6] == ["image", "category", "area_share", "prompt_row", "prompt_column", "IoU>0"]
    assert [line[0] for line in lines] == ["a", "b"]
    assert lines[0][2] == pytest.approx(100 / 900)
    assert 10 <= float(lines[0][3]) < 20 and 10 <= float(lines[0][4]) < 20
    first = dict(zip(header, lines[0], strict=True))
    assert first["best_threshold"] == pytest.approx(0.3)
    assert first["IoU>0.2"] == pytest.approx(100 / 900)
    assert first["IoU>0.3"] == pytest.approx(1.0)
