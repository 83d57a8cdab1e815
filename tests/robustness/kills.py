# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed again and again, and go on until they are done: they must equal runs that were never stopped.

`python -m tests.robustness.kills --count 100 --seed 0 [--out FILE.json]` exits with 1 if a single bit differs. A run has one
process or two, data workers or none, accumulates gradients or not. It is killed by SIGKILL, SIGTERM, or a loss of power: that is
SIGKILL, and whatever was not synced to the disk is cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.engine.running import assert_same_training, checkpoint, run, write_images

STEPS = 24
PATIENCE_S = 180.0
WAYS = ("SIGKILL", "SIGTERM", "power loss")


@dataclass(frozen=True)
class Variant:
    """How a run is made up."""

    processes: int
    workers: int
    accumulate: int

    def options(self) -> dict[str, Any]:
        """Changes of the tiny run."""
        share = 4 // self.processes // self.accumulate
        changes: dict[str, Any] = {"steps": STEPS, "engine__checkpoint_steps": 2, "data__num_workers": self.workers}
        return changes | {"engine__micro_batch_size": share, "devices": self.processes}


VARIANTS = [Variant(*parts) for parts in product((1, 2), (0, 1), (1, 2))]


@dataclass
class Found:
    """What the kills came to.

    Attributes:
        kills: by kind.
        runs: that were killed and came to their end, by variant.
        resumed_from: kills that left a checkpoint to go on from; the others started over.
        lost: what differed from a run that was never stopped, or did not come to its end.
    """

    kills: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    resumed_from: int = 0
    lost: list[str] = field(default_factory=list)


def harness(folder: Path, count: int, seed: int, variants: list[Variant] | None = None) -> Found:
    """Kill `count` times, over as many runs as that takes."""
    images, dice, found = write_images(folder / "images"), random.Random(seed), Found()
    kills: Counter[str] = Counter()
    number = 0
    while sum(kills.values()) < count and not found.lost:
        variant = (variants or VARIANTS)[number % len(variants or VARIANTS)]
        name = f"{variant.processes} processes, {variant.workers} workers, {variant.accumulate} shares"
        whole, out = folder / f"whole-{VARIANTS.index(variant)}", folder / f"killed-{number}"
        journal = folder / f"journal-{number}"
        if not whole.exists():
            _finish(_start(variant, images, whole, folder / "journal-whole"), whole)
        while True:
            pids = _start(variant, images, out, journal)
            way = dice.choice(WAYS) if sum(kills.values()) < count else ""
            if not way or not _kill(pids, way, out, journal, dice):
                break
            kills[way] += 1
            found.resumed_from += (out / "checkpoints" / "last.ckpt").exists()
        try:
            _finish(pids, out)
            compare(whole, out)
        except AssertionError as error:
            found.lost.append(f"{name}, run {number}: {error}")
        found.runs[name] = found.runs.get(name, 0) + 1
        number += 1
    found.kills = dict(kills)
    return found


def compare(whole: Path, killed: Path) -> None:
    """Raise AssertionError unless weights, teacher, centres, optimizer, random state and metric lines are equal bit for bit."""
    assert_same_training(whole, killed)
    assert checkpoint(whole)["plan"] == checkpoint(killed)["plan"]
    for name in ("model.safetensors", "config.yaml"):
        a, b = (f.joinpath(name).read_bytes().replace(os.fsencode(f), b"") for f in (whole, killed))
        assert a == b, f"{name} differs"
    assert not list(killed.rglob("*.partial")), "a file that is not whole lies about"


def _start(variant: Variant, images: Path, out: Path, journal: Path) -> list[int]:
    """Start the processes of a run, each a fork of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places: list[Mapping[str, str]] = [{}]
    if variant.processes > 1:
        shared = {"WORLD_SIZE": str(variant.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"LOCAL_WORLD_SIZE": str(variant.processes), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "kills"}
        places = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(variant.processes)]
    return [_forked(lambda place=place: _work(variant, images, out, journal, place)) for place in places]  # type: ignore[misc]


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        _DONE.pop(pid, None)  # numbers come again
        return pid
    code = 1
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(variant: Variant, images: Path, out: Path, journal: Path, place: Mapping[str, str]) -> None:
    os.environ.update(place)
    _journal_syncs(journal)
    run(images, out, resume=True, **variant.options())


def _journal_syncs(journal: Path) -> None:
    """Have every fsync noted: which file, and how long it was."""
    stream = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    real = os.fsync

    def fsync(fd: Any) -> None:
        real(fd)
        status = os.fstat(fd)
        os.write(stream, f"{status.st_ino} {status.st_size}\n".encode())

    os.fsync = fsync


def _kill(pids: list[int], way: str, out: Path, journal: Path, dice: random.Random) -> bool:
    """Kill at some moment; False if the run came to its end before."""
    if dice.random() < 0.7:
        before, deadline = _lines(out), time.monotonic() + PATIENCE_S
        while _lines(out) <= before and _alive(pids) and time.monotonic() < deadline:
            time.sleep(0.005)
    time.sleep(dice.uniform(0.0, 0.4))
    if not _alive(pids) or _lines(out) >= STEPS:
        return False
    for pid in pids:
        os.killpg(pid, signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
    codes = [_wait(pid) for pid in pids]
    if way == "SIGTERM":
        # A run that trains saves and ends well. Before and after that there is nothing to save: the signal ends the process, and
        # another one that waited for it fails.
        allowed = {0, -signal.SIGTERM} | ({1} if -signal.SIGTERM in codes else set())
        assert set(codes) <= allowed, f"SIGTERM ended with {codes}"
    if way == "power loss":
        _lose_power(out, journal, dice)
    return True


def _lose_power(out: Path, journal: Path, dice: random.Random) -> None:
    """Cut every file to somewhere between what was synced of it and what it is."""
    synced: dict[int, int] = {}
    for line in journal.read_text().splitlines() if journal.exists() else []:
        inode, size = map(int, line.split())
        synced[inode] = size
    for path in out.rglob("*"):
        if path.is_file():
            status = path.stat()
            least = min(synced.get(status.st_ino, 0), status.st_size)
            os.truncate(path, dice.randint(least, status.st_size))


def _finish(pids: list[int], out: Path) -> None:
    codes = [_wait(pid) for pid in pids]
    assert codes == [0] * len(pids), f"a run ended with {codes}"
    assert (out / "model.json").exists()


def _wait(pid: int) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not _alive([pid]):
            return _DONE[pid]
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("a process neither worked nor ended")


_DONE: dict[int, int] = {}


def _alive(pids: list[int]) -> bool:
    for pid in pids:
        if pid not in _DONE:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _DONE[pid] = os.waitstatus_to_exitcode(status)
    return all(pid not in _DONE for pid in pids)


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> int:
    """Run the harness from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = harness(Path(folder), asked.count, asked.seed)
    text = json.dumps({**asdict(found), "seed": asked.seed, "seconds": round(time.monotonic() - began)}, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")
    return 1 if found.lost else 0


if __name__ == "__main__":
    sys.exit(main())
