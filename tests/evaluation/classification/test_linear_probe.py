# SPDX-License-Identifier: Apache-2.0
"""A linear map on frozen features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.classification.linear_probe import (
    LinearClassifier,
    LinearProbe,
    lars,
    probe_inputs,
    probe_rate,
)
from rekindle.evaluation.classification.options import LinearProbeOptions
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import TrainingPart
from rekindle.networks.tokens import Tokens
from tests.evaluation.pictures import ClassTokenExtractor, PatchOnlyExtractor, write_classes
from tests.evaluation.toy import tiny_backbone

QUICK = LinearProbeOptions(epochs=200, batch_size=20, lr=100.0, warmup_epochs=2.0, size_px=16)


def stepped(shape: tuple[int, ...], momentum: float = 0.0, steps: int = 1) -> list[float]:
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.tensor([3.0, 4.0]).reshape(shape))
    optimizer = lars(holder, momentum)
    for _ in range(steps):
        holder.weight.grad = torch.tensor([0.6, 0.8]).reshape(shape)
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        optimizer.step()  # type: ignore[no-untyped-call]
    found: list[float] = holder.weight.detach().flatten().tolist()
    return found


def test_lars_scales_matrices_and_leaves_vectors() -> None:
    """TEC, property 22."""
    assert stepped((1, 2)) == pytest.approx([2.997, 3.996], abs=1e-6)
    assert stepped((2,)) == pytest.approx([2.4, 3.2])
    assert stepped((2,), momentum=0.9, steps=2) == pytest.approx([3 - 0.6 * 2.9, 4 - 0.8 * 2.9])


def test_a_matrix_of_zeros_steps_by_its_plain_gradient() -> None:
    """The factor is 1 where the norm of either is 0 (TEC, section 14)."""
    holder = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(holder.weight)
    holder.weight.grad = torch.tensor([[0.5, -0.5]])
    optimizer = lars(holder, 0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()  # type: ignore[no-untyped-call]
    assert holder.weight.tolist() == [[-0.5, 0.5]]


def test_the_rate_grows_with_the_batch_and_falls_to_zero() -> None:
    paper = LinearProbeOptions(lr=0.1, batch_size=16384, epochs=90, warmup_epochs=10.0)
    assert probe_rate(0.0, paper) == 0.0
    assert probe_rate(5.0, paper) == pytest.approx(3.2)
    assert probe_rate(10.0, paper) == pytest.approx(6.4)
    assert probe_rate(50.0, paper) == pytest.approx(3.2)
    assert probe_rate(90.0, paper) == pytest.approx(0.0)


def test_inputs_are_the_class_tokens_of_all_blocks_and_the_last_mean() -> None:
    per_block = [
        Tokens(torch.full((2, 3), b), torch.zeros(2, 0, 3), torch.full((2, 1, 2, 3), 10 * b)) for b in (1.0, 2.0)
    ]
    assert probe_inputs(per_block, "cls").tolist() == [[1.0] * 3 + [2.0] * 3] * 2
    assert probe_inputs(per_block, "pat").tolist() == [[20.0] * 3] * 2
    assert probe_inputs(per_block, "cls+pat").tolist() == [[1.0] * 3 + [2.0] * 3 + [20.0] * 3] * 2


def test_the_norm_takes_scale_and_shift_of_each_channel_away() -> None:
    """MMC, E10."""
    features = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    head = LinearClassifier(5, 3, is_normed=True).train()
    moved = features * torch.tensor([1.0, 2.0, 5.0, 10.0, 3.0]) + torch.arange(5.0)
    assert torch.allclose(head(features), head(moved), atol=1e-4)
    assert [name for name, _ in head.named_parameters()] == ["classifier.weight", "classifier.bias"]


def made(root: Path, config: LinearProbeOptions = QUICK, extractor: FeatureExtractor | None = None) -> LinearProbe:
    return LinearProbe(config, extractor or ClassTokenExtractor(), ClassFolder(root, "train"), ClassFolder(root, "val"))


def prepared(protocol: LinearProbe) -> LinearProbe:
    protocol.check()
    protocol.prepare()
    return protocol


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"recipe": "sgd", "lr": 20.0},
        {"inputs": "cls+pat", "num_blocks": 2},
        {"augment": True, "recipe": "sgd", "lr": 50.0, "epochs": 15, "warmup_epochs": 1.0},
    ],
)
def test_separable_classes_reach_one(tmp_path: Path, change: dict[str, object]) -> None:
    """MMC, E10."""
    protocol = prepared(made(write_classes(tmp_path), QUICK.model_copy(update=change)))
    found = protocol.run(0)
    assert found.metrics == {"top-1": 1.0, "top-5": 1.0}
    assert found.counts == {"images": 15, "train_images": 20, "classes": 5}
    assert np.array_equal(protocol.run(0).rows, found.rows)


def test_the_encoder_is_untouched_and_extracted_once(tmp_path: Path) -> None:
    """TEC, property 18: no gradient, no step."""
    backbone = tiny_backbone()
    before = copy.deepcopy(backbone.state_dict())
    calls = 0

    class Counting(FeatureExtractor):
        def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
            nonlocal calls
            calls += len(images)
            return super().extract(images, blocks)

    protocol = prepared(made(write_classes(tmp_path), QUICK, Counting(backbone)))
    protocol.run(0), protocol.run(1)
    assert calls == 20 + 15
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())


def test_augmented_crops_are_new_in_every_pass(tmp_path: Path) -> None:
    protocol = made(write_classes(tmp_path, size=40), QUICK.model_copy(update={"augment": True}))
    passes = [
        torch.cat([f for f, _ in protocol._batches([0, 1, 2, 3], seed, epoch)])
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    again = torch.cat([f for f, _ in protocol._batches([0, 1, 2, 3], 0, 0)])
    assert torch.equal(again, passes[0])
    totals = [p.sum() for p in passes]
    assert len({float(t) for t in totals}) == 3


def test_a_rest_of_one_image_is_left_out(tmp_path: Path) -> None:
    protocol = prepared(made(write_classes(tmp_path), QUICK.model_copy(update={"batch_size": 8})))
    sizes = [len(labels) for _, labels in protocol._batches(list(range(17)), 0, 0)]
    assert sizes == [8, 8]


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    protocol = prepared(made(write_classes(tmp_path)))
    protocol._train_features[3] = float("inf")
    with pytest.raises(RekindleError, match=r"the loss is not finite in epoch 0; lower linear_probe\.lr = 100"):
        protocol.run(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_epochs": 200.0}, r"linear_probe\.warmup_epochs = 200 must be less than linear_probe\.epochs = 200"),
        ({"num_blocks": 13}, r"linear_probe\.num_blocks = 13, and the model has 12 blocks"),
        ({"max_cache_gib": 1e-7}, r"linear_probe\.max_cache_gib"),
        ({"size_px": 20}, r"linear_probe\.size_px = 20 is not a multiple"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(write_classes(tmp_path), QUICK.model_copy(update=change)).check()


def test_models_without_class_token_and_single_images_are_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    with pytest.raises(RequestError, match=r"linear_probe\.inputs = cls needs a class token"):
        made(root, extractor=PatchOnlyExtractor()).check()
    protocol = made(root)
    protocol.part = TrainingPart(0.01)
    with pytest.raises(RequestError, match="at least two training images"):
        protocol.check()
