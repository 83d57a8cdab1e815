# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN and UPerNet as protocols."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rekindle.data.segmentation import SegmentationFolder
from rekindle.evaluation.extractors import FeatureExtractor
from rekindle.evaluation.fpn import Fpn
from rekindle.evaluation.pyramid_options import FpnOptions, UperNetOptions
from rekindle.evaluation.trained_segmentation import Segmenter
from rekindle.evaluation.upernet import UperNetProtocol
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
