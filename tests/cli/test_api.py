# SPDX-License-Identifier: Apache-2.0
"""The three Python calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import rekindle
from rekindle.core.errors import RequestError
from tests.engine.running import TINY, options, run, write_images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    run(write_images(folder / "images"), folder / "run", steps=1)
    return folder


def test_pretrain_takes_the_names_of_the_command_line(finished: Path, tmp_path: Path) -> None:
    tree = options(finished / "images", tmp_path / "again", steps=1)
    result = rekindle.pretrain(**{**tree, "images": finished / "images", "out": tmp_path / "again"})
    assert result.is_finished
    first, second = (rekindle.load(path).state_dict() for path in (finished / "run", result))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"did you mean batch_size\?"):
        rekindle.pretrain(images="x", backbone=TINY["backbone"], out=str(tmp_path), batchsize=3)


def test_path_pil_image_and_tensor_give_the_same_tokens_and_the_mode_is_kept(finished: Path) -> None:
    model = rekindle.load(finished / "run")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    path = finished / "images" / "00.png"
    with Image.open(path) as image:
        from_pil = rekindle.extract(model, image)
        raw = image.tobytes()
    pixels = torch.tensor(list(raw), dtype=torch.uint8).view(48, 56, 3).permute(2, 0, 1)
    model.train()
    from_path, from_tensor = rekindle.extract(model, path), rekindle.extract(model, pixels)
    assert model.training
    for tokens in (from_pil, from_tensor):
        torch.testing.assert_close(tokens.patches, from_path.patches)
    assert from_path.patches.shape == (6, 7, 32) and from_path.grid == (6, 7)
    assert rekindle.extract(model, path, size_px=96).patches.shape == (12, 14, 32)


def test_a_tensor_that_is_no_image_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        rekindle.extract(rekindle.load(finished / "run"), torch.zeros(3, 8, 8))


def test_timm_calls_work_on_a_loaded_model(finished: Path) -> None:
    model = rekindle.load(finished / "run")
    pixels = torch.randn(1, 3, 32, 40)
    assert model.forward_features(pixels).shape == (1, 1 + 4 * 5, 32)
    maps = model.forward_intermediates(pixels, indices=1, intermediates_only=True)
    assert isinstance(maps, list) and maps[0].shape == (1, 32, 4, 5)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not the folder of a run"):
        rekindle.load(tmp_path)
