# SPDX-License-Identifier: Apache-2.0
"""A run as the start of a method that needs one more token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.saved import Lineage, load_backbone, save_model
from rekindle.core.errors import RequestError
from rekindle.networks.options import NetworkOptions

ARCH = "vit:width=16,depth=2,heads=2,patch=8,img=32"
REGISTER = NetworkOptions(add_register=True)


def _saved(folder: Path, adapter: AdapterOptions | None = None) -> Path:
    backbone, _ = load_backbone(ARCH, init="random")
    trained = attach(backbone, adapter, train="adapters").trained if adapter else ()
    folder.mkdir()
    train = "adapters" if adapter else "all"
    lineage = Lineage(ARCH, "0" * 64, None, train, adapter, NetworkOptions(), method="dino", steps=1)  # type: ignore[arg-type]
    save_model(folder, backbone, tuple(trained), lineage)
    return folder


def test_a_run_gets_the_register_that_is_asked_for_and_keeps_its_weights(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "run")
    plain, _ = load_backbone(folder)
    more, _ = load_backbone(folder, REGISTER)
    again, _ = load_backbone(folder, REGISTER)
    assert (plain.num_registers, more.num_registers) == (0, 1)
    assert torch.equal(plain.vit.blocks[1].mlp.fc1.weight, more.vit.blocks[1].mlp.fc1.weight)
    assert more.vit.reg_token is not None and again.vit.reg_token is not None
    assert more.vit.reg_token.abs().sum() > 0
    assert torch.equal(more.vit.reg_token, again.vit.reg_token)


def test_a_run_with_adapters_refuses_a_register(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "run", AdapterOptions(rank=2))
    with pytest.raises(RequestError, match=r"--network\.add-register: .*run has adapters"):
        load_backbone(folder, REGISTER)
