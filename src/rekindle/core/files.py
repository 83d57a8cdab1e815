# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rekindle.core.errors import RekindleError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, flush it to disk, then rename it; a crash leaves the old file or the new one.

    Raises RekindleError if the disk is full or the folder cannot be written; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
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
