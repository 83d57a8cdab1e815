# SPDX-License-Identifier: Apache-2.0
"""The patch of every form of MODEL is the one of the loaded network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rekindle.adapters.saved import load_backbone, patch_of_model
from tests.exporting.making import DINOV2, VIT, write_base, write_run
from tests.networks.reference import hugging_face, random_state


def test_the_patch_of_files_and_folders_is_that_of_the_network(tmp_path: Path) -> None:
    state = random_state()
    torch.save({"teacher": state}, tmp_path / "file.pth")
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(hugging_face(state, dinov2=False), folder / "model.safetensors")
    config = {"model_type": "vit", "patch_size": 8, "image_size": 32, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    models = [tmp_path / "file.pth", folder, folder / "model.safetensors", write_base(tmp_path / "own", DINOV2)]
    models.append(write_run(tmp_path / "runs", VIT))
    for model in models:
        assert patch_of_model(model) == load_backbone(model)[0].patch_size, model


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("vit_base_patch14_reg4_dinov2.lvd142m", 14),
        ("dinov3:patch=8", 8),
        ("hf-hub:timm/vit_small_patch16_dinov3.x", 16),
    ],
)
def test_names_tell_it_without_a_connection(name: str, patch: int) -> None:
    assert patch_of_model(name) == patch


def test_a_repository_that_is_not_here_is_not_guessed() -> None:
    assert patch_of_model("hf-hub:someone/something") is None and patch_of_model("hf-hub:no slash") is None
