# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, folders that go away, clocks that go back: a message, and the last good checkpoint is whole."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import check_sealed
from rekindle.engine.metrics_log import MetricsLog
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import StepReport
from tests.engine.running import assert_same_training, checkpoint, run, write_images

FULL = Path("/dev/full")
"""A file that says of every write that the disk is full."""
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


class At:
    """Does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._step, self._act = step, act

    def message(self, text: str) -> None: ...

    def step(self, report: StepReport) -> None:
        if report.step == self._step:
            self._act()

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(images, out, engine__checkpoint_steps=2)
    return out


@needs_full
def test_a_disk_that_fills_leaves_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fill = At(3, lambda: (out / "checkpoints" / ".last.ckpt.partial").symlink_to(FULL))
    with pytest.raises(RekindleError, match=r"last\.ckpt: no space left on the disk .*continue with --resume"):
        run(images, out, watcher=fill, engine__checkpoint_steps=2)
    check_sealed(out / "checkpoints" / "last.ckpt")
    assert checkpoint(out)["step"] == 2
    run(images, out, resume=True, engine__checkpoint_steps=2)
    assert_same_training(whole, out)


@needs_full
def test_a_disk_that_is_full_for_the_metrics_is_told(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", start_step=0, tensorboard=False)
    log._stream.close()
    log._stream = FULL.open("a")
    with pytest.raises(RekindleError, match=r"metrics\.jsonl: no space left on the disk"):
        log.write(1, {"loss": 1.0}, {})
    log.close()


def test_too_little_room_is_told_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(RekindleError, match=r"0 MiB free on that disk, and the run needs about"):
        run(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_a_message(place: str, images: Path) -> None:
    with pytest.raises(RekindleError, match=r"/run"):
        run(images, Path(place))


def test_a_folder_that_is_removed_under_a_run_is_told_and_not_half_made_again(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RekindleError, match="was removed or replaced while the run worked in it"):
        run(images, out, watcher=At(3, lambda: shutil.rmtree(out)), engine__checkpoint_steps=2)
    assert not (out / "checkpoints").exists()


def test_a_folder_that_another_run_has_taken_is_left_alone(images: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    (other / "precious").write_text("theirs")

    def replace() -> None:
        shutil.rmtree(out)
        other.rename(out)

    with pytest.raises(RekindleError, match="was removed or replaced"):
        run(images, out, watcher=At(3, replace), engine__checkpoint_steps=2)
    assert sorted(p.name for p in out.iterdir()) == [".lock", "precious"]


def test_two_processes_cannot_work_in_one_folder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    hold = (
        "import sys, time\nfrom rekindle.engine.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RequestError, match="is in use by another running process"):
            run(images, out)
    finally:
        holder.kill()
        holder.communicate()
    run(images, out)  # a lock does not outlive its holder
    assert RunFolder(out).is_finished


def test_under_a_clock_that_goes_backwards_checkpoints_are_still_written_on_time(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = itertools.count(start=2_000_000_000, step=-3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    run(images, tmp_path / "run", engine__checkpoint_minutes=1e-9)
    assert (tmp_path / "run" / "checkpoints" / "previous.ckpt").exists()  # not the one of the end alone
    assert_same_training(whole, tmp_path / "run")
