# SPDX-License-Identifier: Apache-2.0
"""The face: what `import rekindle` gives, without torch until it is called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rekindle
from rekindle.core.errors import RequestError
from rekindle.evaluation.verdict.telling import points
from tests.engine.running import TINY, options, run, write_images
from tests.evaluation.toy import write_data


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
    with pytest.raises(RequestError, match=r"holds neither model\.json"):
        rekindle.load(tmp_path)


def test_the_face_holds_every_call_and_loads_no_torch() -> None:
    calls = "import sys, rekindle; [getattr(rekindle, name) for name in rekindle.__all__]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", calls], check=True)
    assert {"pretrain", "load", "extract", "evaluate", "compare", "export"} < set(rekindle.__all__)


def test_the_verdict_takes_the_run_that_pretrain_returns_and_says_it_when_printed(
    finished: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    tree = options(finished / "images", tmp_path / "other", steps=1, seed=1)
    other = rekindle.pretrain(**tree)
    settings: dict[str, Any] = {"protocol": ["dense-retrieval"], "seeds": 1, "resamples": 100}
    settings["dense_retrieval"] = {"size_px": 32, "memory_size": 64}
    listed = rekindle.compare(finished / "run", [other], data, out=tmp_path / "a", **settings)
    alone = rekindle.compare(str(finished / "run"), other, data, out=str(tmp_path / "b"), **settings)
    assert listed.rows == alone.rows and (tmp_path / "a" / "comparison.json").is_file()
    first, overall, note = str(listed).splitlines()
    row = listed.rows[0]
    assert row.model == str(other.run)
    size = f"{points(row.verdict.difference)} points (95 %: "
    assert first.startswith(f"{other.run}, dense-retrieval, mIoU: cannot judge: {size}")
    assert first.endswith("images; a verdict needs 30 (or 8 groups)")
    assert overall == f"{other.run}, overall: {listed.overall[0].overall.told}"
    assert note.startswith(f"note: {other.run}: this run, not its recipe")
    settings = {"out": tmp_path / "c.json", "dense_retrieval": settings["dense_retrieval"]}
    single = rekindle.evaluate(rekindle.load(other), "dense-retrieval", data, **settings)
    assert single.metrics["mIoU"] == pytest.approx(row.verdict.model)


def test_a_loaded_model_is_no_name_of_a_comparison(finished: Path) -> None:
    model = rekindle.load(finished / "run")
    for models in ([model], model):
        with pytest.raises(RequestError, match=r"not a Backbone.*rekindle\.evaluate takes a loaded model"):
            rekindle.compare(finished / "run", models, "data")  # type: ignore[arg-type]


def test_examples_use_the_face_alone() -> None:
    scripts = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
    assert scripts
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("rekindle.")], script.name
