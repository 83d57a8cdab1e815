# SPDX-License-Identifier: Apache-2.0
"""A run with the image store is the run without it, bit for bit."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from rekindle.data import images as images_module
from rekindle.data.images import ImageSource
from tests.engine.running import Recorder, assert_same_training, run, write_images

SLOT = 48 * 56 * 3 / 2**30  # GiB of one image

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on warns of threads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that grows by one byte with every decode, in whatever process."""
    note = tmp_path / "decodes"
    original = images_module.read_image

    def counting(*arguments: object, **named: object) -> object:
        with note.open("ab") as stream:
            stream.write(b"x")
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(images_module, "read_image", counting)
    return note


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_the_same_with_a_store_without_one_and_with_one_that_is_too_small(
    folder: Path, tmp_path: Path, decodes: Path, workers: int
) -> None:
    counts = {}
    for name, gib in (("without", 0.0), ("automatic", None), ("small", 2.1 * SLOT)):
        run(folder, tmp_path / name, data__store_gib=gib, data__num_workers=workers)
        counts[name] = decodes.stat().st_size
        decodes.unlink()
    assert_same_training(tmp_path / "without", tmp_path / "automatic")
    assert_same_training(tmp_path / "without", tmp_path / "small")
    assert counts["without"] == 24  # 6 steps of 4 images
    assert counts["automatic"] in ([9] if workers == 0 else range(9, 12))
    assert counts["automatic"] < counts["small"] < 24


def test_a_resumed_run_fills_a_store_of_its_own_and_ends_alike(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "whole", data__store_gib=0.0)

    def stop(report: object) -> None:
        if getattr(report, "step", 0) == 3:
            os.kill(os.getpid(), 15)

    first = run(folder, tmp_path / "cut", watcher=Recorder(stop))
    assert not first.is_finished
    run(folder, tmp_path / "cut", resume=True)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_unreadable_images_are_skipped_and_listed_as_without_a_store(
    folder: Path, tmp_path: Path, decodes: Path
) -> None:
    (folder / "03.png").write_text("no picture")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:300])
    skipped, counts = {}, {}
    for name, gib in (("without", 0.0), ("with", None)):
        result = run(folder, tmp_path / name, data__store_gib=gib, steps=8)
        skipped[name] = (result.skipped, (tmp_path / name / "skipped.txt").read_text())
        counts[name] = decodes.stat().st_size
        decodes.unlink()
    assert skipped["with"] == skipped["without"] and skipped["with"][0] == 2
    assert_same_training(tmp_path / "without", tmp_path / "with")
    asked_why = 2  # the list names the reasons of the two bad ones
    assert counts["with"] == 9 + asked_why < counts["without"]


def test_the_run_says_what_it_may_keep_and_what_it_kept(folder: Path, tmp_path: Path) -> None:
    watcher = Recorder()
    run(folder, tmp_path / "run", watcher=watcher)
    said = [line for line in watcher.messages if line.startswith("image store")]
    assert len(said) == 2
    assert "up to" in said[0] and "GiB" in said[0]
    assert "images are kept decoded" in said[1]
    assert len((tmp_path / "run" / "run.log").read_text().split("image store")) == 3
    silent = Recorder()
    run(folder, tmp_path / "off", watcher=silent, data__store_gib=0.0)
    assert not [line for line in silent.messages if "image store" in line]


def test_nothing_of_the_store_outlives_the_run(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "run", data__num_workers=1)
    gc.collect()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert "rekindle-images" not in maps.read_text()


def test_source_reads_as_before_when_no_store_is_asked_for(folder: Path, decodes: Path) -> None:
    source = images_module.find_images(folder)
    assert isinstance(source, ImageSource)
    for _ in range(2):
        source.read(0)
    assert decodes.stat().st_size == 2
