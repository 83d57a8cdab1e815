# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole, or it is refused and the one before it offered."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from rekindle.core.errors import RekindleError
from rekindle.core.files import DamagedFile, check_sealed, write_sealed
from rekindle.engine.watcher import StepReport
from tests.engine.running import assert_same_training, checkpoint, run, write_images


class StopAfter:
    """Asks the run to stop after a step, as a signal does."""

    def __init__(self, step: int) -> None:
        self.last = step

    def message(self, text: str) -> None: ...

    def step(self, report: StepReport) -> None:
        if report.step == self.last:
            os.kill(os.getpid(), 15)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def stopped(images: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 3 and 4."""
    out = tmp_path / "run"
    run(images, out, watcher=StopAfter(4), engine__checkpoint_steps=3)
    return out / "checkpoints"


def test_the_checkpoint_before_the_last_is_kept(stopped: Path) -> None:
    assert checkpoint(stopped.parent)["step"] == 4
    shutil.copy(stopped / "previous.ckpt", stopped / "last.ckpt")
    assert checkpoint(stopped.parent)["step"] == 3
    assert sorted(p.name for p in stopped.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_single_bit_anywhere_is_noticed(stopped: Path) -> None:
    path, dice = stopped / "last.ckpt", random.Random(0)
    content = path.read_bytes()
    check_sealed(path)
    for place in [0, len(content) - 1, *(dice.randrange(len(content)) for _ in range(60))]:
        changed = bytearray(content)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedFile):
            check_sealed(path)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(
    damage: str, images: Path, stopped: Path
) -> None:
    path = stopped / "last.ckpt"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:5000] + bytes([content[5000] ^ 4]) + content[5001:]
        path.write_bytes({"cut": content[:1000], "bit": flipped, "empty": b""}[damage])
    with pytest.raises(RekindleError, match=r"last\.ckpt is damaged.*The one before it, of step 3, is whole"):
        _resume(images, stopped)
    shutil.copy(stopped / "previous.ckpt", path)  # what the message says
    _resume(images, stopped)
    whole = stopped.parent.with_name("whole")
    run(images, whole, engine__checkpoint_steps=3)
    assert_same_training(whole, stopped.parent)


def test_where_both_are_damaged_nothing_is_offered_that_is_not_there(images: Path, stopped: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (stopped / name).write_bytes(b"PK")
    with pytest.raises(RekindleError, match="Restore a copy of it, or remove the checkpoints folder"):
        _resume(images, stopped)


def test_a_disk_without_links_keeps_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "no links here")

    monkeypatch.setattr("os.link", refuse)
    write_sealed(tmp_path / "a", lambda stream: stream.write(b"one"), previous=tmp_path / "b")
    write_sealed(tmp_path / "a", lambda stream: stream.write(b"two"), previous=tmp_path / "b")
    assert (tmp_path / "a").read_bytes().startswith(b"two")
    assert (tmp_path / "b").read_bytes().startswith(b"one")


def test_a_write_that_fails_leaves_both_files_as_they_were(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a", lambda stream: stream.write(b"one"), previous=tmp_path / "b")
    write_sealed(tmp_path / "a", lambda stream: stream.write(b"two"), previous=tmp_path / "b")

    def fail(stream: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RekindleError, match="no space left"):
        write_sealed(tmp_path / "a", fail, previous=tmp_path / "b")
    assert (tmp_path / "a").read_bytes().startswith(b"two")
    assert (tmp_path / "b").read_bytes().startswith(b"one")
    assert len(list(tmp_path.iterdir())) == 2


def _resume(images: Path, checkpoints: Path) -> None:
    run(images, checkpoints.parent, resume=True, engine__checkpoint_steps=3)
