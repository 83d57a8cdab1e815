# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rekindle.core.errors import RekindleError

_SEAL = b"\nsha256:"
_SEAL_BYTES = len(_SEAL) + 64


class DamagedFile(RekindleError):
    """A sealed file whose content is not what was written; `reason` says what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.reason = reason


class _Digesting:
    """A stream that remembers the digest of what goes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write, and take into account."""
        self.digest.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        """Flush what is below."""
        self._stream.flush()


def write_sealed(path: Path, write: Callable[[Any], object], *, previous: Path) -> None:
    """Write a file that ends in a checksum of itself, atomically; the file that was there becomes `previous`.

    At every moment `path` is the old file or the new one, whole. The checksum stands behind the content, where readers of zip
    files (torch's among them) do not look.

    Args: write, gets a stream that has `write` and `flush`.
    Raises: RekindleError as `write_atomically` does.
    """

    def sealed(stream: BinaryIO) -> None:
        through = _Digesting(stream)
        write(through)
        stream.write(_SEAL + through.digest.hexdigest().encode())

    write_atomically(path, sealed, before_rename=lambda: _keep(path, previous))


def check_sealed(path: Path) -> None:
    """Compare a sealed file with its checksum. Raises: DamagedFile; RekindleError if it cannot be read at all."""
    try:
        with path.open("rb") as stream:
            left = os.fstat(stream.fileno()).st_size - _SEAL_BYTES
            digest = hashlib.sha256()
            while left > 0 and (content := stream.read(min(left, 2**22))):
                digest.update(content)
                left -= len(content)
            seal = stream.read()
    except OSError as error:
        raise RekindleError(
            f"{path} cannot be read ({error.strerror or error}); check the disk, then --resume"
        ) from error
    if left < 0 or not seal.startswith(_SEAL):
        raise DamagedFile(path, "its end is missing, or it was not written by this version")
    if seal != _SEAL + digest.hexdigest().encode():
        raise DamagedFile(path, "its checksum does not fit its content")


def _keep(path: Path, previous: Path) -> None:
    """Give the file at `path` a second name; where the disk has no links, a copy."""
    if not path.exists():
        return
    temporary = previous.with_name(f".{previous.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, before_rename: Callable[[], object] | None = None
) -> None:
    """Write a file beside its place, flush it to disk, then rename it; a crash leaves the old file or the new one.

    Args: before_rename, called when the new file is whole on the disk and the old one still in its place.
    Raises RekindleError if the disk is full or the folder cannot be written; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except RuntimeError as error:  # torch.save reports a full disk as a RuntimeError of its zip writer
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RekindleError(
            f"{path} could not be written ({error}); is the disk full? What was there before is untouched"
        ) from error


def printable(text: str) -> str:
    """One line that every terminal and file takes: control characters, and bytes that are not UTF-8, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def storage_error(path: Path, error: OSError) -> RekindleError:
    """Turn an operating system's error into a message with a remedy."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(existing_parent(path)).free
        return RekindleError(
            f"{path}: no space left on the disk ({free / 2**20:.0f} MiB free); free some, then continue with --resume"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return RekindleError(f"{path}: not writable ({error.strerror}); choose another --out or change its permissions")
    return RekindleError(f"{path}: could not be written ({error.strerror or error})")


def existing_parent(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(p for p in [path, *path.absolute().parents] if p.exists())
