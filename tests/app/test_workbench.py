# SPDX-License-Identifier: Apache-2.0
"""Models and images of the app, without the page."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekindle.app.server import free_port, serving
from rekindle.app.workbench import (
    MOST_KEPT,
    SHOWN_PX,
    Workbench,
    answer,
    full_mask,
    head_pictures,
    load_sides,
    token_pictures,
    with_prompts,
)
from rekindle.cli import main
from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.decoding import UnreadableImage
from rekindle.engine.watcher import LoggingWatcher
from rekindle.measuring.looking import look
from rekindle.prompting.answer import Prompt
from rekindle.prompting.options import AppOptions
from tests.prompting.made import SIZE, read_picture

SILENT = LoggingWatcher()


class Heard:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, report: object) -> None:
        raise AssertionError("the app takes no steps")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def bench(adapted_run: Path) -> Workbench:
    return Workbench(load_sides(AppOptions(model=str(adapted_run)), SILENT), size_px=64, max_pixels=100_000)


def test_a_run_has_its_base_beside_it_and_another_model_stands_alone(bench: Workbench, adapted_run: Path) -> None:
    assert [side.title for side in bench.sides] == ["base", "adapted"]
    alone = load_sides(AppOptions(model="vit:width=32,depth=2,heads=2,patch=8,img=32", init="random"), SILENT)
    assert [side.title for side in alone] == ["model"] and alone[0].arguments[1:] == ("--init", "random")


def test_a_run_whose_base_is_gone_is_refused_or_shown_alone_and_said(adapted_run: Path, tmp_path: Path) -> None:
    """Adapters need their base; a run of all weights does not."""
    moved = tmp_path / "run"
    shutil.copytree(adapted_run, moved)
    shutil.copytree(adapted_run.parent / "base", tmp_path / "base")
    with pytest.raises(RekindleError, match="base"):
        load_sides(AppOptions(model=str(moved), base=str(adapted_run.parent / "images")), SILENT)
    whole, heard = adapted_run.parent / "base", Heard()  # its own base was random weights of an architecture
    config = tmp_path / "base" / "config.yaml"
    config.unlink()
    assert [side.title for side in load_sides(AppOptions(model=str(tmp_path / "base")), heard)] == ["adapted"]
    assert any("the base is not shown" in text for text in heard.messages)
    assert [side.title for side in load_sides(AppOptions(model=str(whole)), SILENT)] == ["base", "adapted"]


def test_an_image_is_looked_at_once_and_only_the_latest_are_kept(
    bench: Workbench, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("rekindle.prompting.job.look", lambda *a, **k: calls.append(1) or look(*a, **k))  # type: ignore[func-returns-value]
    first = tmp_path / "first.png"
    shutil.copy(picture, first)
    assert bench.open(first) is bench.open(first) and len(calls) == 2  # one call for each model
    for number in range(MOST_KEPT):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        bench.open(tmp_path / f"{number}.png")
    calls.clear()
    bench.open(first)
    assert len(calls) == 2


def test_what_is_no_image_too_large_or_too_narrow_is_refused(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "notes.txt").write_bytes(b"text")
    Image.new("RGB", (400, 400)).save(tmp_path / "huge.png")
    Image.new("RGB", (2, 9000)).save(tmp_path / "thread.png")
    for name, error, message in [
        ("broken.png", UnreadableImage, "cannot be read as an image"),
        ("notes.txt", UnreadableImage, "the page takes .avif"),
        ("huge.png", UnreadableImage, "exceed data.max_pixels = 100000"),
        ("thread.png", RequestError, "more than 16384"),
    ]:
        with pytest.raises(error, match=message):
            bench.open(tmp_path / name)


def test_an_upright_image_of_16_bits_is_opened_as_evaluations_decode_it(bench: Workbench, tmp_path: Path) -> None:
    levels = np.arange(0, 65_535, 22, dtype=np.uint16)[: 60 * 40].reshape(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(levels).save(tmp_path / "deep.png", exif=exif)
    opened = bench.open(tmp_path / "deep.png")
    assert opened.size == (40, 60) and opened.picture.shape == (SHOWN_PX * 40 // 60, SHOWN_PX, 3)
    assert 150 < int(opened.picture.max()) and int(opened.picture.min()) < 5


def test_the_shown_command_gives_the_same_mask(bench: Workbench, picture: Path, tmp_path: Path) -> None:
    opened, prompts = bench.open(picture), [Prompt(20, 20), Prompt(90, 100), Prompt(5, 120, is_added=False)]
    for number, side in enumerate(bench.sides):
        shown = answer(opened, prompts, 0.35, "smooth")[number]
        words = shlex.split(bench.command(opened, prompts, 0.35, "smooth", side))
        words[words.index("scene.png")], words[words.index("prompted")] = str(picture), str(tmp_path / side.title)
        assert words[0] == "rekindle" and main(words[1:]) == 0
        mask = read_picture(tmp_path / side.title / "mask.png") == 255
        assert np.array_equal(mask, full_mask(opened, shown, 0.35, "smooth")) and 0 < mask.mean() < 1


def test_pictures_show_places_tokens_and_heads_at_the_pictures_shape(bench: Workbench, picture: Path) -> None:
    opened = bench.open(picture)
    assert opened.size == SIZE and opened.picture.shape == (576, 768, 3)
    marked = with_prompts(opened, [Prompt(48, 64), Prompt(10, 10, is_added=False)])
    y, x = int(48.5 * 6), int(64.5 * 6)
    assert marked[y, x].tolist() == [0, 0, 0] and marked[y + 9, x + 3].tolist() == [255, 255, 255]
    assert (marked != opened.picture).any(axis=-1).mean() < 0.01
    tokens = token_pictures(opened)
    assert [t.shape for t in tokens] == [(576, 768, 3)] * 2
    heads = head_pictures(opened)
    assert [len(side) for side in heads] == [2, 2] and heads[0][0].shape == (240, 320, 3)


def test_the_next_port_is_taken_where_one_is_in_use() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert free_port("127.0.0.1", port) > port
    with pytest.raises(RequestError, match="no address of this machine"):
        free_port("192.0.2.1", 7860)


def test_without_gradio_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'rekindle\[app\]'"), serving(AppOptions(model="x"), SILENT):
        pass


def test_missing_and_unknown_models_are_refused() -> None:
    with pytest.raises(RequestError, match="MODEL is missing"):
        load_sides(AppOptions(), SILENT)
    with pytest.raises(RequestError, match="is no run folder, so it has no base"):
        load_sides(AppOptions(model="vit_tiny", base="somewhere"), SILENT)


def test_help_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys; from rekindle.cli import main; main(['app', '--help']); main(['prompt', '--help']); "
        "sys.exit(bool({'torch', 'gradio'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-upload-mb" in done.stdout and "--subtract" in done.stdout
