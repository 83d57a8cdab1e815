# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN and UPerNet as protocols."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.segmentation import trained_segmentation
from rekindle.evaluation.segmentation.fpn import Fpn
from rekindle.evaluation.segmentation.options import FpnOptions, UperNetOptions
from rekindle.evaluation.segmentation.trained_segmentation import Segmenter
from rekindle.evaluation.segmentation.upernet import UperNetProtocol
from rekindle.evaluation.training.label_images import whole_logits
from rekindle.evaluation.training.labelled_crops import LabelledCrops
from rekindle.evaluation.training.without_prefix import drop_prefix
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.pyramid import FcnHead, UperNet
from tests.evaluation.toy import tiny_backbone, write_data

QUICK = {
    "steps": 40, "batch_size": 4, "lr": 1e-3, "warmup_steps": 4, "size_px": 32, "crop_px": 32, "scale": (1.0, 1.0),
    "jitter": False, "channels": 16,
}  # fmt: skip


def folders(root: Path) -> tuple[SegmentationFolder, SegmentationFolder]:
    write_data(root)
    return SegmentationFolder(root, "train"), SegmentationFolder(root, "val")


@pytest.mark.parametrize("pyramid", ["rescaled", "literal"])
def test_fpn_learns_what_the_colours_say(tmp_path: Path, pyramid: str) -> None:
    config = FpnOptions.model_validate(QUICK | {"pyramid": pyramid, "head_channels": 16})
    protocol = Fpn(config, FeatureExtractor(tiny_backbone()), *folders(tmp_path))
    protocol.check()
    assert protocol.run(0).metrics["mIoU"] > (0.6 if pyramid == "rescaled" else 0.4)


def test_upernet_learns_what_the_colours_say(tmp_path: Path) -> None:
    config = UperNetOptions.model_validate(QUICK)
    protocol = UperNetProtocol(config, FeatureExtractor(tiny_backbone()), *folders(tmp_path))
    assert protocol.run(0).metrics["mIoU"] > 0.6


def test_the_auxiliary_head_adds_two_fifths_of_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step by hand, as mmseg's ViT configurations weigh it; the head reads the third map alone."""
    losses: list[torch.Tensor] = []
    monkeypatch.setattr(
        trained_segmentation, "fit", lambda groups, loss, batches, *_, **__: losses.extend(map(loss, batches))
    )
    config = UperNetOptions.model_validate(QUICK | {"steps": 1, "warmup_steps": 0, "dropout": 0.0})
    protocol = UperNetProtocol(config, FeatureExtractor(tiny_backbone()), *folders(tmp_path))
    network = protocol.trained([0, 1], config, 0).train()
    crops = LabelledCrops(
        protocol.train, [0, 1], config, mean=protocol.extractor.mean, count=4, seed=0, cache_bytes=0.0
    )
    pixels, labels = (torch.stack(list(side)) for side in zip(*(crops[i] for i in range(4)), strict=True))
    decoder = network.decoder
    assert isinstance(decoder, UperNet) and decoder.auxiliary is not None
    maps = network.maps(protocol.extractor.normalise(pixels))
    main, auxiliary = decoder(maps), decoder.auxiliary(maps[2])
    assert auxiliary.shape == (4, 3, 4, 4)
    by_hand = [
        torch.nn.functional.cross_entropy(
            torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear"), labels, ignore_index=255
        )
        for logits in (main, auxiliary)
    ]
    torch.testing.assert_close(losses[0], by_hand[0] + 0.4 * by_hand[1])


def test_the_auxiliary_head_is_the_toolkits_and_only_trains() -> None:
    """One 3x3 convolution without bias, its norm, a 1x1 classifier, at the paper's width."""
    options = UperNetOptions.model_validate(UperNetOptions.PRESETS["paper"])
    assert (options.auxiliary_weight, options.auxiliary_channels) == (0.4, 256)
    head = FcnHead(768, 150, channels=options.auxiliary_channels, dropout=0.1)
    assert sum(p.numel() for p in head.parameters()) == 768 * 256 * 9 + 2 * 256 + 256 * 150 + 150
    with_head, without = UperNet(16, 3, channels=16), UperNet(16, 3, channels=16, auxiliary_channels=0)
    without.load_state_dict({n: t for n, t in with_head.state_dict().items() if not n.startswith("auxiliary.")})
    maps = [torch.randn(1, 16, 4, 4) for _ in range(4)]
    assert torch.equal(with_head.eval()(maps), without.eval()(maps))
    assert without.auxiliary_logits(maps) is None


def test_test_images_have_a_size_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoveDA is cropped at a short side of 512 and tested at 1024 (GLARE, section 9.1)."""
    assert FpnOptions.model_validate(FpnOptions.PRESETS["loveda"]).test_size_px == 1024
    sizes: list[int] = []
    whole = whole_logits

    def noted(network: torch.nn.Module, pixels: torch.Tensor, patch: int) -> torch.Tensor:
        sizes.append(min(pixels.shape[-2:]))
        return whole(network, pixels, patch)

    monkeypatch.setattr(trained_segmentation, "whole_logits", noted)
    for changes in ({}, {"test_size_px": 64}):
        config = FpnOptions.model_validate(QUICK | {"steps": 1, "warmup_steps": 0, "head_channels": 8} | changes)
        Fpn(config, FeatureExtractor(tiny_backbone()), *folders(tmp_path)).run(0)
    assert sizes == [32] * 3 + [64] * 3


def test_the_blocks_are_the_papers() -> None:
    backbone = tiny_backbone()
    backbone.depth = 12
    assert tuple(Fpn.blocks(None, backbone)) == (2, 5, 8, 11)  # type: ignore[arg-type]
    assert tuple(UperNetProtocol.blocks(None, backbone)) == (3, 5, 7, 11)  # type: ignore[arg-type]


def test_decoders_read_tokens_before_the_final_norm() -> None:
    class First(torch.nn.Module):
        def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
            return maps[-1]

    backbone, pixels = tiny_backbone().eval(), torch.randn(1, 3, 16, 16)
    raw = Segmenter(backbone, First(), (-1,), is_frozen=True, final_norm=False)(pixels)
    normed = Segmenter(backbone, First(), (-1,), is_frozen=True)(pixels)
    patches = raw.permute(0, 2, 3, 1)
    torch.testing.assert_close(backbone.vit.norm(patches), normed.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(raw, normed, atol=1e-2)


def _without_class_token(backbone: Backbone) -> torch.nn.Module:
    """The same weights in a network of timm that never had a class token."""
    vit = backbone.vit
    plain: torch.nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, class_token=False, num_classes=0, global_pool="",
        dynamic_img_size=True,
    )  # fmt: skip
    state = {name: t for name, t in vit.state_dict().items() if name != "cls_token"}
    plain.load_state_dict(state | {"pos_embed": vit.pos_embed[:, 1:]}, strict=True)
    return plain.eval()


def test_s34_dropping_prefix_tokens_changes_features_and_not_shapes() -> None:
    """GLARE, property S34; the oracle is timm's network without a class token."""
    kept, dropped, pixels = tiny_backbone().eval(), tiny_backbone().eval(), torch.randn(2, 3, 32, 32)
    oracle = _without_class_token(dropped)
    drop_prefix(dropped)
    before, after = kept(pixels), dropped(pixels)
    assert after.patches.shape == before.patches.shape
    assert after.cls is None and after.registers.shape[1] == 0
    assert not torch.allclose(before.patches, after.patches, atol=1e-3)
    torch.testing.assert_close(after.patches.flatten(1, 2), oracle(pixels), atol=1e-5, rtol=1e-5)
    assert dropped(torch.randn(1, 3, 48, 64)).patches.shape == (1, 6, 8, 16)


@pytest.mark.parametrize("pyramid", ["rescaled", "literal"])
@pytest.mark.parametrize("drop", [False, True])
def test_s34_logits_have_the_size_of_the_labels_with_or_without_prefix(
    tmp_path: Path, pyramid: str, drop: bool
) -> None:
    config = FpnOptions.model_validate(
        QUICK | {"pyramid": pyramid, "head_channels": 8, "steps": 2, "warmup_steps": 0, "drop_prefix": drop}
    )
    extractor = FeatureExtractor(tiny_backbone())
    protocol = Fpn(config, extractor, *folders(tmp_path), keep_images=1)
    outcome = protocol.run(0)
    assert outcome.maps is not None
    assert tuple(outcome.maps.worst[0].prediction.shape) == (16, 48)
    assert extractor.has_class_token  # the model that is measured stays as it is
    network = protocol.trained([0], config.model_copy(update={"steps": 1}), 0)
    assert network.backbone.num_prefix == (0 if drop else 1)


def test_rotary_networks_keep_their_prefix() -> None:
    backbone = tiny_backbone()
    backbone.is_rotary = True
    with pytest.raises(RequestError, match="drop_prefix is for networks with a table of positions"):
        drop_prefix(backbone)
