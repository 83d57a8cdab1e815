# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rekindle.adapters.attach import adapters_enabled
from rekindle.adapters.folding import fold
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import ComposedBlock
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from tests.adapters.networks import PLAIN, ROTARY, ROTARY_GATED, adapted, build, images

ALL = {"lora_targets": ("qkv", "proj", "fc1", "fc2"), "lora_alpha": 3.0}


@pytest.mark.parametrize("name", [PLAIN, ROTARY, ROTARY_GATED])
@pytest.mark.parametrize(("kind", "extra"), [("lora", {}), ("lora", ALL), ("norm", {}), ("bias", {})])
def test_folded_weights_give_the_adapted_output(name: str, kind: str, extra: dict[str, Any], tmp_path: Path) -> None:
    backbone, pixels = adapted(kind, name, **extra), images(24, 40)
    backbone.compiled = {block: lambda *arguments: arguments[0] for block in backbone.vit.blocks}
    folded = fold(backbone)
    backbone.compiled = None
    assert folded.compiled is None and not any(p.requires_grad for p in folded.parameters())
    assert not any(isinstance(block, ComposedBlock) for block in folded.vit.blocks)
    assert folded.state_dict().keys() == build(name).state_dict().keys()
    expected, found = backbone(pixels, cls_attention=True), folded(pixels, cls_attention=True)
    torch.testing.assert_close(found.sequence, expected.sequence, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cls_attention, expected.cls_attention, atol=1e-5, rtol=1e-5)
    with adapters_enabled(backbone, False):
        assert torch.equal(backbone(pixels).sequence, build(name)(pixels).sequence)  # the source stays
    write_checkpoint(folded, tmp_path / "folded.safetensors")
    read, _ = create_backbone(str(tmp_path / "folded.safetensors"), NetworkOptions())
    assert torch.equal(read.eval()(pixels).sequence, found.sequence)


@pytest.mark.parametrize("kind", ["uniadapter", "adaptformer"])
def test_adapters_with_a_nonlinearity_cannot_be_folded(kind: str) -> None:
    with pytest.raises(RequestError, match=r"cannot be folded into the weights; save the run instead"):
        fold(adapted(kind))


def test_a_plain_network_folds_to_a_copy() -> None:
    plain = build()
    folded = fold(plain)
    assert torch.equal(folded(images()).sequence, plain(images()).sequence)
    assert not any(a is b for a, b in zip(folded.parameters(), plain.parameters(), strict=True))
