# SPDX-License-Identifier: Apache-2.0
"""`rekindle pretrain` and `config` as a user meets them: messages, exit codes, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import rekindle
from rekindle.cli import COMMANDS, main
from tests.engine.running import TINY, run, write_images


def _arguments(source: Path, folder: Path, /, **changes: object) -> list[str]:
    flat = {**TINY, "images": source, "out": folder, **{k.replace("__", "."): v for k, v in changes.items()}}
    arguments: list[str] = []
    for name, value in flat.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            *groups, last = flag.split(".")
            arguments.append("--" + ".".join([*groups, last if value else f"no-{last}"]))
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    return arguments


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    assert main(list(arguments)) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_a_run_from_the_command_line_ends_with_a_model_and_json(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *_arguments(images, tmp_path / "run", steps=2), "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["is_finished"] and result["steps"] == 2 and result["images"] == 9
    assert "images/s" in output.err and "ETA" in output.err
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["glare"]["num_prototypes"] == 32 and resolved["steps"] == 2
    tokens = rekindle.extract(tmp_path / "run", images / "00.png")
    assert tokens.cls is not None and tokens.cls.shape == (32,)
    assert tokens.patches.shape == (6, 7, 32)


def test_the_resolved_file_repeats_the_run(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "first", steps=2)
    again = tmp_path / "second"
    assert main(["pretrain", "--config", str(tmp_path / "first" / "config.yaml"), "--out", str(again)]) == 0
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_resume_needs_nothing_but_the_folder_and_refuses_another_seed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(images, tmp_path / "run", steps=2)
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume"]) == 0
    capsys.readouterr()
    text = _fails(["pretrain", "--out", str(tmp_path / "run"), "--resume", "--seed", "5"], capsys)
    assert "seed = 0, not 5" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": "nowhere"}, "nothing is there"),
        ({"images": None}, "--images is missing"),
        ({"backbone": None}, "--backbone is missing"),
        ({"backbone": "missing.pth"}, "missing.pth"),
        ({"backbone": "vit_small_patch16_224.dinno"}, "vit_small_patch16_224.dino"),
        ({"method": "glaer"}, "did you mean 'glare'"),
        (
            {"views__global_size_px": 33},
            "views.global_size_px = 33 is not a multiple of the backbone's patch size 8; use 32 or 40",
        ),
        ({"views__hue": 0.9}, "hue"),
        ({"init": "random", "train": "adapters"}, "use --train all"),
        ({"init": "pretrained"}, "architecture without weights"),
        ({"epochs": 3}, "steps and epochs are both given"),
        ({"steps": "many"}, "steps"),
        ({"glare__region_min_patches": 7}, "region_min_patches = 7"),
        ({"glare__num_region": 3}, "num-regions"),
        ({"adapter__knd": "lora"}, "adapter.kind"),
        ({"devices": 64}, "use --devices 1"),
    ],
    ids=str,
)
def test_a_wrong_request_is_answered_with_its_cause_and_leaves_nothing_behind(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], expected: str
) -> None:
    out = tmp_path / "run"
    text = _fails(["pretrain", *_arguments(images, out, **changes)], capsys)
    assert expected in text
    assert not out.exists()


def test_an_unknown_key_of_a_run_file_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    for content, expected in (
        ("views: {num_locals: 3}", "unknown option views.num_locals; did you mean views.num_local?"),
        ("num_local: 3", "did you mean views.num_local?"),
        ("views: {num_local: ten}", "views.num_local = 'ten'"),
        ("- a", "a run file holds"),
        ("a: [", "not valid YAML"),
    ):
        path.write_text(content)
        assert expected in _fails(["pretrain", "--config", str(path)], capsys)
    assert "No such file" in _fails(["pretrain", "--config", str(tmp_path / "none.yaml")], capsys)


def test_a_folder_that_holds_another_run_or_foreign_files_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(images, tmp_path / "run", steps=1)
    before = (tmp_path / "run" / "model.json").read_bytes()
    assert "already holds a run" in _fails(["pretrain", *_arguments(images, tmp_path / "run")], capsys)
    assert (tmp_path / "run" / "model.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "thesis.txt" in _fails(["pretrain", *_arguments(images, tmp_path / "mine")], capsys)
    (tmp_path / "file").write_text("")
    assert "is a file" in _fails(["pretrain", *_arguments(images, tmp_path / "file")], capsys)


def test_a_folder_in_use_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "in use by another running process" in _fails(["pretrain", *_arguments(images, out)], capsys)
    assert not (out / "config.yaml").exists()


def test_no_disk_space_is_told_before_anything_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1 << 20))
    text = _fails(["pretrain", *_arguments(images, tmp_path / "run")], capsys, code=1)
    assert "1 MiB free" in text and "needs about" in text
    assert not (tmp_path / "run").exists()


def test_a_full_disk_in_mid_run_keeps_the_last_checkpoint(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch as torch_module

    original, calls = torch_module.save, []

    def full(payload: object, stream: BinaryIO) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(payload, stream)

    monkeypatch.setattr(torch_module, "save", full)
    out = tmp_path / "run"
    text = _fails(["pretrain", *_arguments(images, out, engine__checkpoint_steps=1)], capsys, code=1)
    assert "no space left on the disk" in text and "--resume" in text
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 2
    assert not list(out.rglob("*.partial"))


def test_a_pickle_with_code_is_refused_and_not_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps({"teacher": Bomb()}))
    text = _fails(["pretrain", *_arguments(images, tmp_path / "run", backbone=path, init="pretrained")], capsys)
    assert "bomb.pth" in text
    assert not (tmp_path / "ran").exists()


def test_a_partial_checkpoint_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(images, tmp_path / "base", steps=1)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "base" / "model.safetensors")
    cut = {n.removeprefix("vit."): t for n, t in state.items() if "blocks.1.mlp" not in n}
    save_file(cut, tmp_path / "cut.safetensors")
    changes = {"backbone": tmp_path / "cut.safetensors", "init": "pretrained", "network__arch": TINY["backbone"]}
    text = _fails(["pretrain", *_arguments(images, tmp_path / "run", **changes)], capsys)
    assert "blocks.1.mlp" in text and "allow-partial" in text


def test_bad_images_are_skipped_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images", 8)
    good = Image.open(folder / "00.png").convert("RGB")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("P").save(folder / "palette.png")
    Image.fromarray(np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) * 40).save(folder / "sixteen.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    good.save(folder / "turned.jpg", exif=exif)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "00.png").read_bytes()[:200])
    arguments = _arguments(folder, tmp_path / "run", steps=4, batch_size=8, engine__micro_batch_size=8)
    assert main(["pretrain", *arguments, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["skipped"] == 3
    assert "3 of 16 images could not be read" in output.err
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert all(name in listed for name in ("zero.jpg", "text.png", "cut.png"))


def test_too_many_bad_images_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images", 4)
    for i in range(6):
        (folder / f"bad{i}.png").write_text("no image")
    arguments = _arguments(folder, tmp_path / "run", data__max_unreadable_fraction=0.3)
    text = _fails(["pretrain", *arguments], capsys, code=1)
    assert "could not be read" in text and "max-unreadable-fraction" in text
    assert "bad" in (tmp_path / "run" / "skipped.txt").read_text(), "the message points to this file"


def test_config_tells_what_set_each_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: dino\ninit: random\ntrain: all\noptim: {weight_decay: 0.2}\n")
    assert main(["config", str(path), "--seed", "3", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["seed"] == {"value": 3, "source": "asked"}
    assert values["optim.weight_decay"] == {"value": 0.2, "source": "file"}
    assert values["optim.warmup_epochs"] == {"value": 10.0, "source": "paper"}
    assert values["views.hue"] == {"value": 0.1, "source": "default"}


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'pretrain'" in _fails(["pretrian"], capsys)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_no_torch(command: str | None) -> None:
    """What makes help appear at once; the time itself is not asserted here."""
    arguments = ["--help"] if command is None else [command, "--help"]
    code = f"import sys; from rekindle.cli import main; main({arguments!r}); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "rekindle" in result.stdout


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "rekindle", "pretrian"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "did you mean 'pretrain'" in result.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, rekindle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_training_does_not_import_what_only_measuring_needs() -> None:
    """They weigh 0.1 GiB and some seconds, in every process."""
    unwanted = {"torchmetrics", "transformers", "matplotlib", "sklearn"}
    code = f"import sys, rekindle.pretraining.run; sys.exit(bool({unwanted!r} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
