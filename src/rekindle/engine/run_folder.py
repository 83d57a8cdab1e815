# SPDX-License-Identifier: Apache-2.0
"""The folder that holds a run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import existing_parent, storage_error, write_atomically


class RunFolder:
    """The folder of one run; its attributes name what lies in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: os.stat_result | None = None
        self.config = self.path / "config.yaml"
        self.sources = self.path / "sources.json"
        self.sessions = self.path / "sessions.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "run.log"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.weights = self.path / "model.safetensors"
        self.description = self.path / "model.json"
        self.not_finite = self.path / "not_finite.txt"
        self.skipped = self.path / "skipped.txt"
        self.pictures = self.path / "pictures"
        self.probes = self.path / "probes.jsonl"
        self.best_probe = self.path / "best_probe.json"
        self.best = self.path / "best"
        self.last = self.path / "last"

    @property
    def holds_run(self) -> bool:
        """True if a run was started here."""
        return self.config.exists()

    @property
    def is_finished(self) -> bool:
        """True if the run here came to its end (the model's description is written last)."""
        return self.description.exists()

    def refuse_unless_free(self, *, resume: bool, needed_bytes: int) -> None:
        """Check, before anything is written, that a run may start here.

        Raises RequestError if the path is a file, holds another run (without `resume`) or foreign files, or if the disk
        has less than `needed_bytes` free.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"--out {self.path} is a file; give a folder that is new, empty, or a run to resume")
        if self.holds_run and not resume:
            raise RequestError(
                f"--out {self.path} already holds a run; continue it with --resume, or choose another folder"
            )
        if self.path.is_dir() and not self.holds_run:
            own = {".lock", "run.log", "checkpoints", "config.yaml"}
            foreign = sorted(
                p.name for p in self.path.iterdir() if p.name not in own and not p.name.endswith(".partial")
            )
            if foreign:
                raise RequestError(
                    f"--out {self.path} is not empty and is not a run (it holds {foreign[0]}); choose a new or empty folder"
                )
        parent = existing_parent(self.path)
        if not os.access(parent, os.W_OK):
            raise RequestError(f"--out {self.path}: {parent} is not writable; choose another folder")
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise RekindleError(
                f"--out {self.path}: {free / 2**20:.0f} MiB free on that disk, and the run needs about "
                f"{needed_bytes / 2**20:.0f} MiB for checkpoints and model; free some or choose another disk"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises RequestError if another process works in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / ".lock").open("a+")
        except OSError as error:
            raise storage_error(self.path, error) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RequestError(
                    f"--out {self.path} is in use by another running process; wait for it, or choose another folder"
                ) from error
            self._lock = os.fstat(stream.fileno())
            try:
                yield
            finally:
                self._lock = None

    def require_still_there(self) -> None:
        """Raise RekindleError if the locked folder was removed or replaced: writing on would leave parts of a run."""
        if self._lock is None:
            return
        try:
            found = os.stat(self.path / ".lock")
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (self._lock.st_dev, self._lock.st_ino):
            raise RekindleError(
                f"--out {self.path} was removed or replaced while the run worked in it; what was trained is lost with it. Start "
                "again, into a folder that stays"
            )

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the run's text files atomically."""
        write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))
