# SPDX-License-Identifier: Apache-2.0
"""A run on a packed trunk leaves adapters on the base as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rekindle.adapters.saved import load_backbone, model_hash, read_description
from rekindle.core.errors import RequestError
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.pretraining.options import resolve
from rekindle.pretraining.requests import check_request, resolve_resumed
from tests.adapters.networks import build
from tests.engine.running import options, run, write_images


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_checkpoint(build("vit:width=32,depth=2,heads=2,patch=8,img=32"), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures") / "images")


def _changes(base: Path, bits: int | None, **more: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {"backbone": str(base), "init": "pretrained", "train": "adapters", "adapter__rank": 4}
    return changes | {"engine__trunk_bits": bits, "engine__micro_batch_size": 2, "network__arch": ARCH} | more


ARCH = "vit:width=32,depth=2,heads=2,patch=8,img=32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_four_bits_leaves_adapters_on_the_float32_base(
    base: Path, pictures: Path, tmp_path: Path, precision: str
) -> None:
    changes = _changes(base, 4, steps=3, precision=precision, engine__recompute_blocks=precision == "bf16")
    result = run(pictures, tmp_path / "run", **changes)
    loaded, _ = load_backbone(result.run)
    whole, _ = load_backbone(base, resolve({}, options(pictures, tmp_path, **changes)).options.network)
    mine, theirs = loaded.state_dict(), whole.state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name.replace("vit.blocks.0", "vit.blocks.0.block").replace(".1.", ".1.block.")], tensor)
    ups = [t for n, t in mine.items() if n.endswith("adapter.up.weight")]
    assert len(ups) == 2 and all(float(t.abs().max()) > 0 for t in ups)  # they started at zero
    assert read_description(result.run)["model_hash"] == result.model_hash


def test_the_saved_model_is_hashed_as_it_is_loaded(base: Path, pictures: Path, tmp_path: Path) -> None:
    result = run(pictures, tmp_path / "run", **_changes(base, 8, steps=1))
    assert model_hash(load_backbone(result.run)[0]) == result.model_hash


def test_a_run_goes_on_with_the_bits_it_began_with(base: Path, pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "run", **_changes(base, 8, steps=2))
    resolve_resumed(str(tmp_path / "run"), {"engine": {"log_steps": 2}})
    with pytest.raises(RequestError, match=r"with engine\.trunk_bits = 8, not 4"):
        resolve_resumed(str(tmp_path / "run"), {"engine": {"trunk_bits": 4}})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": "all"}, "--engine.trunk-bits 4 packs weights that stay still, and with --train all they move"),
        ({"train": "norm"}, "use --train adapters, or leave the bits out"),
        ({"adapter__kind": "bias"}, "use uniadapter, adaptformer, lora, or leave the bits out"),
    ],
)
def test_weights_that_move_are_not_packed(
    base: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RequestError, match=expected):
        check_request(resolve({}, options(pictures, tmp_path, **_changes(base, 4, **changes))).options)
