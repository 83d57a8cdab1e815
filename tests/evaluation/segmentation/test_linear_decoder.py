# SPDX-License-Identifier: Apache-2.0
"""The linear decoder, and with it what all trained decoders share."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import TrainingPart
from rekindle.evaluation.segmentation.linear_decoder import LinearDecoder, LinearMaps
from rekindle.evaluation.segmentation.options import LinearDecoderOptions
from rekindle.evaluation.segmentation.trained_segmentation import Segmenter, pixel_loss
from tests.evaluation.toy import tiny_backbone, write_data, write_item

QUICK = LinearDecoderOptions(
    steps=60, batch_size=4, lr=3e-3, warmup_steps=5, size_px=16, crop_px=16, scale=(1.0, 1.0), jitter=False
)


WHOLE = TrainingPart()


def made(root: Path, *, part: TrainingPart = WHOLE, **changes: object) -> LinearDecoder:
    config = QUICK.model_copy(update=changes)
    train, test = (SegmentationFolder(root, split) for split in ("train", "val"))
    return LinearDecoder(config, FeatureExtractor(tiny_backbone()), train, test, part=part)


def test_it_learns_what_the_colours_say(tmp_path: Path) -> None:
    protocol = made(write_data(tmp_path))
    protocol.check()
    found = protocol.run(0)
    assert found.score.name == "mIoU"
    assert found.metrics["mIoU"] > 0.8
    assert found.metrics["oracle-mIoU"] >= found.metrics["mIoU"] - 1e-9
    assert found.counts["trained_parameters"] > 5000
    assert np.array_equal(protocol.run(0).rows, found.rows)


def test_the_measured_model_is_left_as_it_was(tmp_path: Path) -> None:
    protocol = made(write_data(tmp_path), steps=6)
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    before = protocol.extractor.extract(pixels)[0].patches
    protocol.run(0)
    assert torch.equal(protocol.extractor.extract(pixels)[0].patches, before)


def test_a_frozen_backbone_trains_nothing_but_the_decoder(tmp_path: Path) -> None:
    protocol = made(write_data(tmp_path), steps=6, train_backbone=False)
    network = protocol.trained([0, 1], protocol.config, 0)
    same = tiny_backbone().state_dict()
    assert all(torch.equal(value, same[name]) for name, value in network.backbone.state_dict().items())
    assert protocol.run(0).counts["trained_parameters"] == 16 * 3 + 3


def test_stochastic_depth_acts_on_the_blocks_that_are_read() -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone()
    backbone.set_drop_path(0.5)
    network = Segmenter(backbone, LinearMaps(16, 3), (-1,), is_frozen=False)
    pixels = torch.randn(1, 3, 16, 16)
    outputs = {network.train()(pixels).sum().item() for _ in range(12)}
    assert len(outputs) > 1
    assert len({network.eval()(pixels).sum().item() for _ in range(3)}) == 1


def test_folds_are_nested_and_reduce_the_steps(tmp_path: Path) -> None:
    """LOCA, specification 15.2: floor(fraction * n), and max(20k, 160k * fraction) steps."""
    root = write_data(tmp_path, num_train=16)
    protocol = made(root)
    folds = [TrainingPart(f).indices(protocol.train.items, 3) for f in (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)]
    assert [len(fold) for fold in folds] == [1, 2, 4, 8, 16]
    assert all(set(a) < set(b) for a, b in pairwise(folds))
    assert folds[2] != TrainingPart(1 / 4).indices(protocol.train.items, 4)
    quarter, sliver = (made(root, part=TrainingPart(f), steps=80) for f in (1 / 4, 1 / 16))
    assert quarter.run(0).counts["steps"] == 20
    assert sliver.run(0).counts == {**sliver.run(0).counts, "steps": 10, "train_images": 1}


def test_the_published_fold_sizes() -> None:
    items = [str(i) for i in range(20_210)]
    sizes = [len(TrainingPart(1 / d).indices(items, 0)) for d in (32, 16, 8, 4, 2, 1)]
    assert sizes == [631, 1263, 2526, 5052, 10_105, 20_210]


def test_a_list_names_the_training_images(tmp_path: Path) -> None:
    protocol = made(write_data(tmp_path), part=TrainingPart(listed=("train2", "train0")))
    assert protocol.training_indices(0) == protocol.training_indices(5) == [0, 2]
    with pytest.raises(RequestError, match="names 'nobody', which is not in the training split"):
        made(tmp_path, part=TrainingPart(listed=("nobody",))).check()


def test_the_search_takes_the_best_rate_and_never_sees_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_data(tmp_path, num_train=10)
    lines: list[str] = []
    protocol = made(root, search_lr=(1e-6, 1.0), search_optimizer=("adamw", "sgd"), steps=30)
    protocol.message = lines.append
    seen: list[list[int]] = []
    asked: list[str] = []
    original, read = LinearDecoder.trained, SegmentationFolder.read

    def trained(self: LinearDecoder, indices: list[int], config: LinearDecoderOptions, seed: int) -> Segmenter:
        seen.append(indices)
        return original(self, indices, config, seed)

    def noted(self: SegmentationFolder, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(self.split)
        return read(self, index)

    monkeypatch.setattr(LinearDecoder, "trained", trained)
    monkeypatch.setattr(SegmentationFolder, "read", noted)
    best = protocol.searched(list(range(10)), protocol.config, 0)
    assert (best.lr, best.optimizer) == (QUICK.lr, "adamw")
    assert len(lines) == 4 and "mIoU" in lines[0]
    assert all(len(indices) == 8 for indices in seen)
    assert set(asked) == {"train"}


def test_the_oracle_can_be_the_headline(tmp_path: Path) -> None:
    found = made(write_data(tmp_path), headline="oracle-mIoU", steps=10).run(0)
    assert found.score.name == "oracle-mIoU"
    assert next(iter(found.metrics)) == "oracle-mIoU"
    assert found.metrics["mIoU"] <= found.metrics["oracle-mIoU"] + 1e-9


def test_windows_give_what_the_whole_gives_where_one_window_is_the_image(tmp_path: Path) -> None:
    root = write_data(tmp_path, width=16)
    whole = made(root, steps=10).run(0)
    slid = made(root, steps=10, inference="slide", window_px=16, stride_px=8).run(0)
    assert np.array_equal(whole.rows, slid.rows)


def test_the_loss_counts_labelled_pixels_alone() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    labels[0] = 255
    alone = pixel_loss(logits[1:], labels[1:], 255)
    assert float(pixel_loss(logits, labels, 255)) == pytest.approx(float(alone))
    assert float(pixel_loss(logits, torch.full_like(labels, 255), 255)) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_px": 20}, "crop_px = 20 is not a multiple of the model's patch size 8; use 16 or 24"),
        ({"inference": "slide", "window_px": 4}, "window_px = 4 is not a multiple of the model's patch size 8; use 8"),
        ({"inference": "slide", "window_px": 16, "stride_px": 17}, "stride_px = 17 leaves gaps"),
        ({"warmup_steps": 60}, "warmup_steps = 60 must be less than the steps.*; lower warmup_steps, or raise steps"),
        ({"search_lr": (1.0, 2.0)}, "a search needs at least two training images"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    protocol = made(write_data(tmp_path, num_train=1), part=WHOLE, **change)
    with pytest.raises(RequestError, match=message):
        protocol.check()


def test_images_without_a_label_teach_and_cost_nothing(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    write_item(root, "train", "blank", np.full((16, 48), 255, np.uint8))
    assert made(root).run(0).metrics["mIoU"] > 0.7
