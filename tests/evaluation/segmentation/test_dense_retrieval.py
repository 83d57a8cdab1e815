# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.cluster_matching import named_statistics
from rekindle.evaluation.scores.pixel_counts import image_statistics
from rekindle.evaluation.segmentation.dense_retrieval import (
    DenseRetrieval,
    image_confusion,
    memory_crop,
    retrieve,
    sample_patches,
    soft_labels,
)
from rekindle.evaluation.segmentation.options import DenseRetrievalOptions
from rekindle.measuring.options import evaluate_options, protocol_options
from tests.evaluation.toy import ColourExtractor, stripes, tiny_backbone, write_data, write_item, write_noise

PLAIN = DenseRetrievalOptions(size_px=48, augmentation_epochs=0, num_neighbours=3)


def protocol(
    root: Path, config: DenseRetrievalOptions = PLAIN, extractor: FeatureExtractor | None = None
) -> DenseRetrieval:
    train, test = SegmentationFolder(root, "train"), SegmentationFolder(root, "val")
    return DenseRetrieval(config, extractor or ColourExtractor(), train, test)


def outcome(root: Path, config: DenseRetrievalOptions = PLAIN, seed: int = 0) -> Outcome:
    made = protocol(root, config)
    made.check()
    made.prepare()
    return made.run(seed)


def test_soft_labels_are_class_frequencies() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 255]])
    assert soft_labels(mask, 2, 3).tolist() == [
        pytest.approx([0.75, 0, 0.25]),
        pytest.approx([0, 1, 0]),
    ]
    assert soft_labels(torch.full((2, 2), 255), 2, 3).tolist() == [[0, 0, 0]]


def test_sampler_returns_distinct_patches_and_prefers_the_rare_class() -> None:
    labels = torch.zeros(196, 2)
    labels[:, 0] = 1
    labels[77] = torch.tensor([0.0, 1.0])
    draws = [sample_patches(labels, 10, torch.Generator().manual_seed(i)) for i in range(50)]
    assert all(len(set(d.tolist())) == 10 for d in draws)
    assert sum(77 in d for d in draws) >= 49
    assert sample_patches(labels, 500, torch.Generator()).tolist() == list(range(196))


def test_retrieval_equals_a_slow_loop() -> None:
    source = torch.Generator().manual_seed(0)
    queries, memory = (torch.nn.functional.normalize(torch.randn(n, 4, generator=source), dim=1) for n in (5, 9))
    labels = torch.rand(9, 3, generator=source).softmax(dim=1)
    found = retrieve(queries, memory, labels, num_neighbours=4, temperature=0.1)
    for query, row in zip(queries, found, strict=True):
        cosines = [float(query @ m) for m in memory]
        best = sorted(range(9), key=lambda i: -cosines[i])[:4]
        weights = np.exp([cosines[i] / 0.1 for i in best])
        expected = sum(w / weights.sum() * labels[i] for w, i in zip(weights, best, strict=True))
        assert torch.allclose(row, expected.float(), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(5))


def test_memory_that_holds_the_queries_reproduces_their_labels() -> None:
    features, labels = torch.eye(6), torch.eye(6)[[0, 1, 2, 0, 1, 2]][:, :3]
    found = retrieve(features, features, labels, num_neighbours=1, temperature=0.02)
    assert torch.equal(found, labels)


def test_class_features_on_stripes_reach_one(tmp_path: Path) -> None:
    found = outcome(write_data(tmp_path))
    assert found.metrics["mIoU"] == pytest.approx(1.0)
    assert found.counts["pixels"] == 3 * 48 * 48
    assert found.counts["memory_patches"] == 3 * 36


def test_one_class_in_memory_gives_a_constant_prediction(tmp_path: Path) -> None:
    root = write_data(tmp_path, num_train=0)
    write_item(root, "train", "green", np.ones((16, 48), np.uint8))
    predicted = outcome(root).rows[:, 6:9]
    assert predicted[:, 1].tolist() == [48 * 48] * 3
    assert predicted.sum() == 3 * 48 * 48


@pytest.mark.parametrize("preset", ["paper", "memory-2", "memory-3"])
def test_ignored_pixels_are_remembered_only_where_a_published_protocol_is_asked_for(preset: str) -> None:
    asked = {"protocol": "dense-retrieval"}
    assert protocol_options(evaluate_options(asked), "dense-retrieval").model_dump()["drop_ignored"]
    published = protocol_options(evaluate_options(asked | {"preset": preset}), "dense-retrieval").model_dump()
    assert not published["drop_ignored"]


def test_ignored_pixels_count_as_class_zero_or_not_at_all(tmp_path: Path) -> None:
    root = write_data(tmp_path, num_train=0)
    mask = stripes()
    mask[:, :24] = 255
    write_item(root, "train", "half", mask)
    remembered = outcome(root, PLAIN.model_copy(update={"drop_ignored": False}))
    assert remembered.counts["memory_patches"] == 36
    dropped = outcome(root)
    assert dropped.counts["memory_patches"] == 18
    assert dropped.metrics["mIoU"] == pytest.approx(1.0)


def test_memory_is_bounded_and_drawn_by_the_seed(tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"memory_size": 13})
    made = protocol(write_noise(tmp_path), config, FeatureExtractor(tiny_backbone()))
    made.prepare()
    first = made.run(0)
    assert first.counts["memory_patches"] == 12
    assert np.array_equal(made.run(0).rows, first.rows)
    assert not np.array_equal(made.run(1).rows, first.rows)


def test_augmentation_crops_image_and_mask_alike() -> None:
    mask = torch.from_numpy(stripes()).long()
    image = 255 * torch.nn.functional.one_hot(mask, 3).permute(2, 0, 1).to(torch.uint8)
    agreement = []
    for i in range(20):
        source = torch.Generator().manual_seed(i)
        cropped, labels = memory_crop(image, mask, 32, source)
        assert cropped.shape == (3, 32, 32)
        agreement.append(float((cropped.argmax(dim=0) == labels).float().mean()))
    assert min(agreement) > 0.9
    repeated = memory_crop(image, mask, 32, torch.Generator().manual_seed(19))
    assert torch.equal(repeated[0], cropped)


def test_augmented_memory_still_finds_the_classes(tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"augmentation_epochs": 2})
    found = outcome(write_data(tmp_path), config)
    assert found.counts["memory_patches"] == 2 * 3 * 36
    assert found.metrics["mIoU"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_px": 50}, "size_px = 50 is not a multiple of the model's patch size 8; use 48 or 56"),
        ({"memory_size": 2}, "memory_size = 2 leaves less than one patch .* use at least 3"),
    ],
)
def test_requests_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        protocol(write_data(tmp_path), PLAIN.model_copy(update=change)).check()


def test_a_memory_of_ignored_pixels_alone_is_refused(tmp_path: Path) -> None:
    root = write_data(tmp_path, num_train=0)
    write_item(root, "train", "void", np.full((16, 48), 255, np.uint8))
    with pytest.raises(RequestError, match="every pixel is ignored"):
        outcome(root)


def test_matching_of_the_public_tool_renames_classes_and_counts_absent_ones(tmp_path: Path) -> None:
    """The memory calls red green and green blue, so names are wrong and matching mends all but the absent class."""
    root = write_data(tmp_path, num_train=0, num_test=0)
    for split, mask in (("train", stripes()), ("val", stripes())):
        mask[mask == 2] = 1
        write_item(root, split, "a", mask)
    path = root / "masks" / "train" / "a.png"
    Image.fromarray(np.asarray(Image.open(path)) + np.uint8(1)).save(path)
    plain, matched = (outcome(root, PLAIN.model_copy(update={"compat": kind})) for kind in ("none", "hungarian"))
    assert plain.metrics["mIoU"] == 0.0
    assert matched.metrics["matched mIoU"] == pytest.approx(2 / 3)
    assert matched.metrics["IoU/red"] == matched.metrics["IoU/green"] == 1.0
    assert matched.counts == plain.counts


def test_confusion_agrees_with_the_counts_of_classes() -> None:
    source = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(0, 3, (9, 9), generator=source), torch.randint(0, 4, (9, 9), generator=source)
    label[label == 3] = 255
    confusion = image_confusion(prediction, label, 3, 255)
    expected = image_statistics(prediction, label, 3, 255)
    assert np.array_equal(named_statistics(confusion[None], np.arange(3))[0], expected)
    assert confusion[0, 1] == int(((prediction == 0) & (label == 1)).sum())
