# SPDX-License-Identifier: Apache-2.0
"""Released weights: a DINOv2 in transformers' layout gives what transformers and timm compute of it, on a real image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import rekindle
from rekindle.adapters.saved import load_backbone
from rekindle.data.decoding import read_image
from rekindle.evaluation.features.dense_features import resize_image
from rekindle.networks.backbone import Backbone

SHARED = Path(__file__).parents[4] / "shared"
BASE, IMAGES = SHARED / "bases" / "dinov2-small", SHARED / "data" / "camvid" / "images" / "val"
pytestmark = pytest.mark.skipif(
    not BASE.is_dir(), reason="../shared/bases/dinov2-small, the released weights, is not here"
)
SIZES = [(98, 154), (224, 224), (70, 322)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return rekindle.load(BASE)


def _pixels(backbone: Backbone, size: tuple[int, int]) -> Tensor:
    """The first frame of a pack, normalised; noise where there is no pack."""
    frame = next(iter(sorted(IMAGES.glob("*.jpg"))), None)
    if frame is None:
        return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    return ((resize_image(read_image(str(frame)), size) / 255 - mean) / std)[None]


def test_loading_says_what_is_used_and_what_is_assumed() -> None:
    backbone, message = load_backbone(BASE)
    assert "matched 174 of 174 tensors" in message and "positions: 37 x 37, at other sizes by the rule dino" in message
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406)) and "assumed, ImageNet's" in message
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_features_are_those_of_transformers(backbone: Backbone) -> None:
    """Its Dinov2Model resizes positions to the target size, without DINO's 0.1: our rule `size`."""
    model = pytest.importorskip("transformers").Dinov2Model.from_pretrained(BASE, dtype=torch.float32).eval()
    with torch.no_grad():
        for size in [(518, 518), *SIZES]:
            pixels = _pixels(backbone, size)
            backbone.pos_interp = "size"
            expected = model(pixel_values=pixels).last_hidden_state
            torch.testing.assert_close(backbone(pixels).sequence, expected, atol=1e-4, rtol=0)
        backbone.pos_interp = "dino"
        assert (backbone(pixels).sequence - expected).abs().max() > 0.05  # the rules are told apart


def test_features_are_those_of_timm(backbone: Backbone) -> None:
    """Its models resize positions with a low-pass filter: our rule `antialias`."""
    model: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(backbone.vit.state_dict())
    backbone.pos_interp = "antialias"
    with torch.no_grad():
        for size in SIZES[:2]:
            pixels = _pixels(backbone, size)
            expected = model.eval().forward_features(pixels)
            torch.testing.assert_close(backbone(pixels).sequence, expected, atol=1e-4, rtol=0)
