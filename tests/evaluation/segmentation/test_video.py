# SPDX-License-Identifier: Apache-2.0
"""Label propagation in videos, and its metrics against hand-worked cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.data.labelled.davis import DavisVideos
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.video_metrics import contour, contour_accuracy, decay, recall, region_overlap
from rekindle.evaluation.segmentation.options import VideoOptions
from rekindle.evaluation.segmentation.video import Video, frame_size, object_map, propagate, window
from rekindle.networks.tokens import Tokens
from tests.data.labelled.test_davis import write_video
from tests.evaluation.toy import tiny_backbone


def square(shift: int) -> np.ndarray:
    mask = np.zeros((480, 854), bool)
    mask[100:200, 100 + shift : 200 + shift] = True
    return mask


@pytest.mark.parametrize(
    ("shift", "overlap", "accuracy"),
    [(5, 0.9048, 1.0), (8, 0.8519, 1.0), (9, 0.8349, 0.54), (10, 0.8182, 0.535), (20, 0.6667, None)],
)
def test_a_square_that_moves(shift: int, overlap: float, accuracy: float | None) -> None:
    """The specification's worked cases (E7)."""
    assert region_overlap(square(shift), square(0)) == pytest.approx(overlap, abs=5e-5)
    assert region_overlap(square(0), square(shift)) == region_overlap(square(shift), square(0))
    if accuracy is not None:
        assert contour_accuracy(square(shift), square(0)) == pytest.approx(accuracy, abs=5e-3)
        assert contour_accuracy(square(0), square(shift)) == pytest.approx(accuracy, abs=5e-3)


def test_nothing_found_and_nothing_there_is_right() -> None:
    empty = np.zeros((20, 30), bool)
    assert region_overlap(empty, empty) == contour_accuracy(empty, empty) == 1.0
    assert contour_accuracy(empty, square(0)[:20, :30] | np.eye(20, 30, dtype=bool)) == 0.0


def test_contours_and_tolerance_equal_a_dilation_with_a_disk() -> None:
    source = np.random.default_rng(0)
    a, b = (ndimage.binary_opening(source.random((60, 80)) < 0.7, iterations=2) for _ in range(2))
    slow = np.zeros_like(a)
    for y in range(60):
        for x in range(80):
            around = [
                a[min(y + dy, 59), min(x + dx, 79)]
                for dy, dx in ((0, 1), (1, 0), (1, 1))
                if y + dy < 60 and x + dx < 80
            ]
            slow[y, x] = any(v != a[y, x] for v in around)
    assert np.array_equal(contour(a), slow)
    grid = np.mgrid[-1:2, -1:2]
    disk = (grid**2).sum(axis=0) <= 1  # ceil(0.008 * 100) = 1
    found, wanted = contour(a), contour(b)
    precision = (found & ndimage.binary_dilation(wanted, disk)).sum() / found.sum()
    hits = (wanted & ndimage.binary_dilation(found, disk)).sum() / wanted.sum()
    assert contour_accuracy(a, b) == pytest.approx(2 * precision * hits / (precision + hits))


def test_recall_and_decay_follow_the_toolkit() -> None:
    values = [1.0] * 5 + [0.0] * 5
    assert recall(values) == 0.5
    assert decay(values) == 1.0


def test_the_published_window() -> None:
    near = window((30, 52), 12)
    assert int(near.sum()) == 679_536
    assert int(near[0].sum()) == 169


def test_sizes_of_frames() -> None:
    assert frame_size(480, 854, 480, 16) == (480, 832)
    assert frame_size(100, 100, 28, 14) == (28, 56)


def test_weights_sum_to_one_over_at_most_five_patches_in_the_window() -> None:
    source = torch.Generator().manual_seed(0)
    grid, near = (4, 5), window((4, 5), 1)
    features = functional.normalize(torch.randn(4, 20, 8, generator=source), dim=-1)
    one_hot = torch.eye(60).reshape(3, 20, 60)  # a label for every patch of the context: the weights themselves
    weights = propagate(features[3], features[:3], one_hot, near, temperature=0.1, neighbours=5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))
    assert int((weights > 0).sum(dim=1).max()) <= 5
    assert not bool(weights.reshape(20, 3, 20)[~near[:, None].expand(-1, 3, -1)].any())
    slow = torch.zeros(20, 60)
    for p in range(20):
        allowed = {
            t * 20 + q: float(torch.exp(features[3, p] @ features[t, q] / 0.1))
            for t in range(3)
            for q in range(20)
            if abs(p // 5 - q // 5) <= 1 and abs(p % 5 - q % 5) <= 1
        }
        best = sorted(allowed, key=lambda k: -allowed[k])[:5]
        for k in best:
            slow[p, k] = allowed[k] / sum(allowed[b] for b in best)
    torch.testing.assert_close(weights, slow, atol=1e-6, rtol=1e-5)
    assert grid == (4, 5)


class PlaceExtractor(FeatureExtractor):
    """Every place of the grid has a feature of its own, whatever the image."""

    def __init__(self) -> None:
        self.device, self.patch_size, self.width, self.depth = torch.device("cpu"), 16, 8, 12

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        grid = images.shape[-2] // 16, images.shape[-1] // 16
        places = torch.eye(grid[0] * grid[1]).reshape(1, *grid, -1).expand(len(images), -1, -1, -1)
        return [Tokens(None, places.new_zeros(len(images), 0, places.shape[-1]), places)]


def video(root: Path, mask: np.ndarray, extractor: FeatureExtractor, **options: object) -> Video:
    frames = [np.random.default_rng(i).integers(0, 256, (*mask.shape, 3), dtype=np.uint8) for i in range(5)]
    write_video(root, "still", frames, [mask] * 5)
    config = VideoOptions(size_px=mask.shape[0], radius=12).model_copy(update=options)
    return Video(config, extractor, None, DavisVideos(root, "val"))


@pytest.mark.parametrize(("rows", "columns", "overlap"), [(None, (2, 5), 1.0), ((3, 9), (4, 11), 0.9913)])
def test_a_still_video_of_unique_features(
    tmp_path: Path, rows: tuple[int, int] | None, columns: tuple[int, int], overlap: float
) -> None:
    """A patch-aligned band stays; a rectangle of 6 x 7 patches loses its corners to the bilinear step (E7)."""
    mask = np.zeros((240, 320), np.uint8)
    mask[slice(*(16 * r for r in rows)) if rows else slice(None), 16 * columns[0] : 16 * columns[1]] = 1
    protocol = video(tmp_path, mask, PlaceExtractor())
    found = protocol.followed(0)
    assert len(found) == 5
    for objects in found[1:]:
        assert region_overlap(objects.numpy() == 1, mask == 1) == pytest.approx(overlap, abs=3e-4)


def test_objects_keep_their_numbers_and_are_averaged(tmp_path: Path) -> None:
    mask = np.zeros((64, 128), np.uint8)
    mask[:, :32], mask[:, 96:] = 1, 2
    protocol = video(tmp_path, mask, PlaceExtractor(), num_neighbours=1, masks=str(tmp_path / "out"))
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    assert found.metrics["J&F"] == found.metrics["J"] == found.metrics["F"] == 1.0
    assert found.metrics["J-decay"] == 0.0
    assert found.counts == {"sequences": 1, "frames": 5, "objects": 2}
    written = Image.open(tmp_path / "out" / "still" / "00003.png")
    assert written.mode == "P"
    assert np.array_equal(np.asarray(written), mask)
    assert np.array_equal(protocol.run(1).rows, found.rows)


def test_channels_are_stretched_before_the_largest_wins() -> None:
    soft = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    assert object_map(soft, (2, 2), (2, 2), (2, 2)).tolist() == [[0, 0], [1, 1]]


def test_a_real_network_follows_an_object(tmp_path: Path) -> None:
    frames, masks = [], []
    for shift in range(5):
        mask = np.zeros((64, 128), np.uint8)
        mask[16:48, 16 + 4 * shift : 56 + 4 * shift] = 1
        frames.append(np.where(mask[..., None] == 1, [250, 20, 20], [20, 20, 120]).astype(np.uint8))
        masks.append(mask)
    write_video(tmp_path, "move", frames, masks)
    protocol = Video(VideoOptions(size_px=64), FeatureExtractor(tiny_backbone()), None, DavisVideos(tmp_path, "val"))
    protocol.prepare()
    assert protocol.run(0).metrics["J"] > 0.6


def test_frames_smaller_than_a_patch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"video\.size_px = 8 is smaller than a patch of 16 px"):
        video(tmp_path, np.ones((64, 64), np.uint8), PlaceExtractor(), size_px=8).check()
