# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on classes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.classification.classifier_head import ClassifierHead, read_adapters
from rekindle.evaluation.classification.finetune import Finetune, TargetLoss, planned
from rekindle.evaluation.classification.options import FinetuneOptions
from rekindle.evaluation.features.dense_features import centre_crop
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.training.fitting import fit, training_groups
from rekindle.measuring.options import evaluate_options, protocol_options
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.conditioning import STATE, Conditioning, EncoderAdapters, InputAdapter
from tests.evaluation.pictures import PatchOnlyExtractor, write_classes
from tests.evaluation.toy import tiny_backbone

QUICK = FinetuneOptions(
    steps=60, warmup_steps=5, batch_size=10, lr=2e-3, size_px=16, crop_area=(0.6, 1.0), drop_path=0.0
)


def made(root: Path, config: FinetuneOptions = QUICK, extractor: FeatureExtractor | None = None) -> Finetune:
    data = ClassFolder(root, "train"), ClassFolder(root, "val")
    return Finetune(config, extractor or FeatureExtractor(tiny_backbone()), *data)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "pat", "head_norm": True},
        {
            "inputs": "cls+pat",
            "mixup": 0.8,
            "cutmix": 1.0,
            "random_erasing": 0.25,
            "augmentation": "3-augment",
            "steps": 120,
        },
    ],
)
def test_classes_that_differ_in_colour_are_learned(tmp_path: Path, change: dict[str, object]) -> None:
    protocol = made(write_classes(tmp_path), QUICK.model_copy(update=change))
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    assert found.metrics["top-1"] > 0.7
    assert found.counts["train_images"] == 20 and found.counts["images"] == 15
    assert next(iter(found.metrics)) == "top-1"


def test_a_seed_repeats_itself_and_the_model_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    before = copy.deepcopy(backbone.state_dict())
    config = QUICK.model_copy(
        update={"steps": 4, "warmup_steps": 1, "mixup": 0.8, "random_erasing": 0.5, "drop_path": 0.2}
    )
    protocol = made(write_classes(tmp_path), config, FeatureExtractor(backbone))
    logits: list[Tensor] = []
    tested = Finetune._tested

    def recorded(self: Finetune, network: Backbone, head: ClassifierHead) -> Tensor:
        logits.append(tested(self, network, head))
        return logits[-1]

    monkeypatch.setattr(Finetune, "_tested", recorded)
    for seed in (0, 0, 1):
        protocol.run(seed)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_sixteen_fixed_images_are_learned_by_heart() -> None:
    """MMC, E9: the loss falls below 0.05."""
    source = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(16, 3, 32, 32, generator=source), torch.arange(16) % 4
    config = FinetuneOptions(steps=100, warmup_steps=5, lr=3e-3, label_smoothing=0.0, drop_path=0.0)
    backbone, head = tiny_backbone().train(), ClassifierHead(16, 4, config)
    losses: list[float] = []

    def loss(step: int) -> Tensor:
        value = functional.cross_entropy(head(backbone, pixels), labels)
        losses.append(float(value.detach()))
        return value

    fit(training_groups(backbone, head, config), loss, range(100), config, seed=0, message=print)
    assert losses[-1] < 0.05 < losses[0]


def test_passes_become_steps_and_rates_follow_the_batch() -> None:
    config = FinetuneOptions(epochs=100, warmup_epochs=5, batch_size=64, lr=1e-3, lr_images=256)
    plan = planned(config, 1000)
    assert (plan.steps, plan.warmup_steps) == (1500, 75)
    assert plan.lr == pytest.approx(2.5e-4)
    assert planned(QUICK, 1000) == QUICK
    assert planned(config, 10).steps == 100


def test_targets_are_mixed_with_the_images() -> None:
    """Mixup of two images x, y by a weight w: w x + (1 - w) y, and the smoothed targets alike (arXiv:1710.09412)."""
    pixels, labels = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), torch.tensor([0, 1])
    config = FinetuneOptions(mixup=1.0, label_smoothing=0.1)
    seen: list[Tensor] = []
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def classify(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return logits

    value = TargetLoss(config, 3, torch.device("cpu"), 0)(classify, 0, pixels.clone(), labels)
    share = 1.0 - float(seen[0][0].mean())
    assert 0.0 < share < 1.0 and float(seen[0][1].mean()) == pytest.approx(share)
    one_hot = functional.one_hot(labels, 3) * 0.9 + 0.1 / 3
    targets = share * one_hot + (1 - share) * one_hot.flip(0)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(value) == pytest.approx(float(expected), abs=1e-5)
    again = TargetLoss(config, 3, torch.device("cpu"), 0)(classify, 0, pixels.clone(), labels)
    assert float(again) == float(value)
    assert float(TargetLoss(config, 3, torch.device("cpu"), 0)(classify, 1, pixels.clone(), labels)) != float(value)


def test_targets_without_mixing_are_smoothed_once_and_boxes_are_erased() -> None:
    config = FinetuneOptions(label_smoothing=0.2, random_erasing=1.0)
    logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    seen: list[Tensor] = []

    def classify(x: Tensor) -> Tensor:
        seen.append(x)
        return logits

    value = TargetLoss(config, 3, torch.device("cpu"), 0)(classify, 0, torch.full((1, 3, 32, 32), 9.0), labels)
    assert float(value) == pytest.approx(float(functional.cross_entropy(logits, labels, label_smoothing=0.2)))
    erased = (seen[0] != 9.0).float().mean()
    assert 0.01 < float(erased) < 0.4


def conditioned(encoder: bool = True) -> tuple[Conditioning, Tensor, Backbone]:
    """Adapters with the class token that they read, and the plain network that they were merged into."""
    torch.manual_seed(0)
    backbone = tiny_backbone()
    fusing = EncoderAdapters(16, 2, blocks_per_group=1, hidden=8) if encoder else None
    conditioning = Conditioning(InputAdapter(16), fusing)
    token = backbone.vit.cls_token.detach().clone()
    return conditioning, token, conditioning.merged(backbone)


def write_run(folder: Path, encoder: bool = True) -> Backbone:
    conditioning, token, merged = conditioned(encoder)
    stored = {f"{STATE}.{n}": t for n, t in conditioning.state_dict().items()} | {"student.vit.cls_token": token}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"method": stored}, folder / "checkpoints" / "last.ckpt")
    return merged


def test_before_any_step_the_input_adapter_is_the_merged_token() -> None:
    """TEC, section 5: the input of the MLP is a constant."""
    conditioning, token, merged = conditioned()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for head_norm in (False, True):
        config = FinetuneOptions(train="input-adapter", inputs="cls+pat", head_norm=head_norm, conditioning="x")
        plain = ClassifierHead(16, 3, config).eval()
        adapted = ClassifierHead(16, 3, config, (conditioning, token)).eval()
        adapted.load_state_dict(plain.state_dict(), strict=False)
        assert torch.allclose(adapted(merged, pixels), plain(merged, pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("train", "prefixes"),
    [
        ("head", {"norm", "classifier"}),
        ("input-adapter", {"norm", "classifier", "class_token", "conditioning.input"}),
        ("encoder-adapters", {"norm", "classifier", "class_token", "conditioning.input", "conditioning.encoder"}),
    ],
)
def test_only_what_is_asked_for_trains(tmp_path: Path, train: str, prefixes: set[str]) -> None:
    """TEC, property 18."""
    merged = write_run(tmp_path / "run")
    config = QUICK.model_copy(
        update={
            "train": train,
            "head_norm": True,
            "inputs": "pat",
            "steps": 3,
            "warmup_steps": 1,
            "conditioning": "" if train == "head" else str(tmp_path / "run"),
        }
    )
    protocol = made(write_classes(tmp_path / "data"), config, FeatureExtractor(merged))
    protocol.check()
    backbone, head = protocol._network(0)
    before = copy.deepcopy(backbone.state_dict())
    kept = copy.deepcopy(head.state_dict())
    pixels, labels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    groups = training_groups(None, head, config)
    fit(
        groups,
        lambda _: functional.cross_entropy(head(backbone, pixels), labels),
        range(3),
        config,
        seed=0,
        message=print,
    )
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())
    moved = {name for name, value in head.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == set(kept) and all(p.grad is not None for p in head.parameters())
    assert {next(p for p in prefixes if name.startswith(p)) for name in kept} == prefixes
    found = protocol.run(0)
    assert found.counts["trained_parameters"] == sum(p.numel() for p in head.parameters())


def test_encoder_adapters_fuse_all_blocks() -> None:
    """The features are Z_e of the block outputs, the last one after the final norm (TEC, sections 6 and 7)."""
    conditioning, token, merged = conditioned()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    config = FinetuneOptions(train="encoder-adapters", inputs="pat", conditioning="x")
    head = ClassifierHead(16, 3, config, (conditioning, token)).eval()
    merged.eval()
    first, last = merged.intermediate(pixels, (0, 1), norm=False)
    outputs = [first.sequence, merged.vit.norm(last.sequence)]
    assert conditioning.encoder is not None
    fused = conditioning.encoder(outputs)[:, 1:].mean(dim=1)
    assert torch.allclose(head(merged, pixels), head.classifier(fused), atol=1e-5)


def test_adapters_of_another_model_or_none_are_refused(tmp_path: Path) -> None:
    merged = write_run(tmp_path / "run", encoder=False)
    read_adapters(str(tmp_path / "run"), "input-adapter", merged)
    with pytest.raises(RequestError, match="was trained without them"):
        read_adapters(str(tmp_path / "run"), "encoder-adapters", merged)
    with pytest.raises(RequestError, match="holds the adapters of another model"):
        read_adapters(str(tmp_path / "run"), "input-adapter", tiny_backbone())
    with pytest.raises(RequestError, match="is no checkpoint of a run"):
        read_adapters(str(tmp_path / "nowhere"), "input-adapter", merged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 60}, r"a warm-up of 60 steps must be less than the 60 steps; lower finetune\.warmup_steps"),
        ({"epochs": 2.0, "warmup_epochs": 2.0}, r"lower finetune\.warmup_epochs"),
        ({"batch_size": 5, "mixup": 0.8}, r"finetune\.batch_size = 5 must be even"),
        ({"train_backbone": False}, r"use that"),
        ({"train": "input-adapter"}, r"finetune\.train = input-adapter and finetune\.conditioning = '' do not fit"),
        ({"conditioning": "runs/tec"}, r"finetune\.train = all and finetune\.conditioning = 'runs/tec' do not fit"),
        ({"augmentation": "strong"}, r"finetune\.augmentation = 'strong'"),
        ({"size_px": 20}, r"finetune\.size_px = 20 is not a multiple"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(write_classes(tmp_path), QUICK.model_copy(update=change)).check()


def test_models_without_class_token_read_the_patches(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    with pytest.raises(RequestError, match=r"finetune\.inputs = cls needs a class token"):
        made(root, extractor=PatchOnlyExtractor()).check()


def test_the_test_images_are_centre_crops_in_order(tmp_path: Path) -> None:
    protocol = made(write_classes(tmp_path))
    backbone, head = protocol._network(0)
    scores = protocol._tested(backbone.eval(), head.eval())
    image = protocol.test.image(7)
    with torch.no_grad():
        one = head(backbone, protocol.extractor.normalise(centre_crop(image, 16)[None]))
    assert scores.shape == (15, 5)
    assert np.allclose(scores[7].numpy(), one[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("preset", ["derm7pt", "covidx"])
def test_the_recipe_for_medical_images_is_that_of_the_specification(preset: str) -> None:
    """GLARE, specification 9.2: AdamW 1e-4 at batch 128, decay 0.05, 100 epochs, 5 of warm-up, cosine, crops of 35 to 100 %."""
    request = evaluate_options({"protocol": "finetune", "preset": preset})
    options = protocol_options(request, "finetune")
    assert isinstance(options, FinetuneOptions)
    expected: dict[str, object] = {
        "size_px": 224, "optimizer": "adamw", "lr": 1e-4, "lr_images": 0, "batch_size": 128, "weight_decay": 0.05,
        "epochs": 100.0, "warmup_epochs": 5.0, "schedule": "cosine", "final_lr": 0.0, "crop_area": (0.35, 1.0),
        "label_smoothing": 0.1, "drop_path": 0.1, "layer_decay": 1.0, "head_lr_scale": 1.0, "inputs": "cls",
        "head_norm": False, "augmentation": "none", "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "train": "all",
    }  # fmt: skip
    assert options.model_dump(include=set(expected)) == expected
    six_per_epoch = planned(options, 800)
    assert (six_per_epoch.steps, six_per_epoch.warmup_steps) == (600, 30)
