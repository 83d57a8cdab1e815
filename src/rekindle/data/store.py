# SPDX-License-Identifier: Apache-2.0
"""Decoded images kept in memory, shared by all data workers and all processes of a run on one machine.

One file is mapped by everybody: a header, a table with a row per image, and the pixels one after the other. On Linux it is
an anonymous file (memfd): it takes memory only where something was written, does not depend on the size of /dev/shm, and
goes when the last process does. Elsewhere it is a temporary file that the process which made it removes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.decoding import UnreadableImage
from rekindle.data.images import ImageSource
from rekindle.data.memory import free_bytes
from rekindle.data.options import DataOptions

T = TypeVar("T")

GIB = 1 << 30
AUTOMATIC_SHARE = 4
"""One part in this many of the free memory is the budget that nobody asked for: activations need the rest."""

_TOKEN, _NEXT, _KEPT, _STREAMED, _UNREADABLE = range(5)  # places in the header
_HEADER_BYTES, _ROW_BYTES, _PAGE_BYTES, _ALIGNMENT = 64, 32, 4096, 64
_OFFSET, _HEIGHT, _WIDTH, _STATE = range(4)  # columns of the table
_IS_KEPT, _IS_STREAMED, _IS_UNREADABLE = 1, 2, 3  # states; 0: never asked for
_REASON_BYTES = 400


@dataclass(frozen=True)
class StoreCounts:
    """Where the images stand.

    Attributes:
        kept: images whose pixels are kept.
        streamed: images that did not fit and are decoded each time.
        unreadable: images whose failure is kept.
        num_bytes: memory in use, of the budget.
    """

    kept: int
    streamed: int
    unreadable: int
    num_bytes: int


@dataclass(frozen=True)
class StoreHandle:
    """By what another process of this machine finds a store.

    Attributes:
        num_images: rows of its table.
        budget: bytes for pixels.
        token: a random number in its header, so that a path that means something else elsewhere is told.
        path: of the file.
    """

    num_images: int
    budget: int
    token: int
    path: str


class ImageStore:
    """Room for the pixels of `num_images` images within `budget` bytes. Pickles as its handle, and maps again.

    Pixels are written, under a lock, before the row that says where they are: whoever is killed half-way leaves a store
    without that image. Nothing is ever removed or moved, so a view of the pixels stays what it is.
    """

    def __init__(self, num_images: int, budget: int) -> None:
        file, path, remove = _new_file(_pixels_start(num_images) + budget)
        weakref.finalize(self, _release, file, remove, os.getpid())
        self.handle = StoreHandle(num_images, budget, secrets.randbits(62), path)
        self._map(file)
        self._header[_TOKEN] = self.handle.token

    @classmethod
    def attached(cls, handle: StoreHandle) -> ImageStore:
        """The store of another process. Raises OSError if it cannot be reached from here."""
        store = cls.__new__(cls)
        store.handle = handle
        file = os.open(handle.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != _pixels_start(handle.num_images) + handle.budget:
                raise FileNotFoundError(f"{handle.path} is not the image store that was passed on")
            store._map(file)
        finally:
            os.close(file)
        if store._header[_TOKEN] != handle.token:
            raise FileNotFoundError(f"{handle.path} is not the image store that was passed on")
        return store

    def __reduce__(self) -> tuple[Callable[[StoreHandle], ImageStore], tuple[StoreHandle]]:
        return ImageStore.attached, (self.handle,)

    def _map(self, file: int) -> None:
        start, num_images = _pixels_start(self.handle.num_images), self.handle.num_images
        everything = np.frombuffer(mmap.mmap(file, start + self.handle.budget), dtype=np.uint8)
        self._header = everything[:_HEADER_BYTES].view(np.int64)
        rows = everything[_HEADER_BYTES : _HEADER_BYTES + _ROW_BYTES * num_images]
        self._table = rows.view(np.int64).reshape(num_images, 4)
        self._pixels = torch.from_numpy(everything[start:])
        self._seen = np.zeros(num_images, dtype=bool)
        self._thread_lock = threading.Lock()
        self._lock_file, self._lock_owner = -1, -1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude all other processes, and the other threads of this one."""
        if self._lock_owner != os.getpid():
            # A lock belongs to an open file, which fork would share with the parent: every process opens its own.
            self._lock_file, self._lock_owner = os.open(self.handle.path, os.O_RDWR | os.O_CLOEXEC), os.getpid()
            self._thread_lock = threading.Lock()
            weakref.finalize(self, _release, self._lock_file, "", os.getpid())
        with self._thread_lock:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def get(self, index: int) -> Tensor | str | None:
        """The image, a view [3, H, W] of memory that is ordered [H, W, 3]; or why it is unreadable; or None: not here.

        Whoever writes into the view changes the image for every process.
        """
        state = self._table[index, _STATE]
        if state not in (_IS_KEPT, _IS_UNREADABLE):
            return None
        if not self._seen[index]:
            # The writer held the lock; having it after the writer makes every processor see what was written before.
            with self._locked():
                self._seen[index] = True
        start, height, width, _ = map(int, self._table[index])
        if state == _IS_UNREADABLE:
            return bytes(self._pixels[start : start + width].numpy()).decode("utf-8", "replace")
        return self._pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Keep an image uint8 [3, H, W] if it fits and nobody else has kept it."""
        _, height, width = image.shape
        self._put(index, image.permute(1, 2, 0).reshape(-1), height, width, _IS_KEPT)

    def put_unreadable(self, index: int, reason: str) -> None:
        """Keep the reason why an image cannot be read, if it fits."""
        text = torch.tensor(list(reason.encode()[:_REASON_BYTES]), dtype=torch.uint8)
        self._put(index, text, 1, len(text), _IS_UNREADABLE)

    def _put(self, index: int, content: Tensor, height: int, width: int, state: int) -> None:
        row, header = self._table[index], self._header
        if row[_STATE] != 0:
            return
        with self._locked():
            if row[_STATE] != 0:
                return
            start = int(header[_NEXT])
            if len(content) > self.handle.budget - start:
                if state == _IS_KEPT:
                    header[_STREAMED] += 1
                    row[_STATE] = _IS_STREAMED  # room never comes back, so it need not be tried again
                return
            self._pixels[start : start + len(content)] = content
            row[:_STATE] = start, height, width
            header[_NEXT] = min(self.handle.budget, start + -(-len(content) // _ALIGNMENT) * _ALIGNMENT)
            header[_KEPT if state == _IS_KEPT else _UNREADABLE] += 1
            row[_STATE] = state

    def counts(self) -> StoreCounts:
        """Where the images stand now."""
        header = self._header
        return StoreCounts(int(header[_KEPT]), int(header[_STREAMED]), int(header[_UNREADABLE]), int(header[_NEXT]))


class StoredImages:
    """Images that are read from a store where it has them, and put there where not.

    Args: source; store; options, as whose draft_px and max_pixels ask for them they are kept.
    """

    def __init__(self, source: ImageSource, store: ImageStore, options: DataOptions) -> None:
        self._source, self.store = source, store
        self._kept_as = (options.draft_px, options.max_pixels)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, *, draft_px: int | None, max_pixels: int) -> Tensor:
        """Return uint8 [3, H, W], not to be written into. Raises: UnreadableImage."""
        if (draft_px, max_pixels) != self._kept_as:
            return self._source.read(index, draft_px=draft_px, max_pixels=max_pixels)
        found = self.store.get(index)
        if isinstance(found, str):
            raise UnreadableImage(self._source.name(index), found)
        if found is not None:
            return found
        try:
            image = self._source.read(index, draft_px=draft_px, max_pixels=max_pixels)
        except UnreadableImage as error:
            if not _may_pass(error.__cause__):
                self.store.put_unreadable(index, error.reason)
            raise
        self.store.put(index, image)
        return image


def _may_pass(cause: BaseException | None) -> bool:
    """Whether another attempt may succeed: the operating system's errors (a disk away) and a lack of memory."""
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def store_budget(store_gib: float | None) -> int:
    """Bytes that the option stands for; None is a quarter of what is free. Raises RequestError if there is not so much."""
    free = free_bytes()
    if store_gib is None:
        return free // AUTOMATIC_SHARE
    wanted = int(store_gib * GIB)
    if wanted > free:
        raise RequestError(
            f"data.store_gib = {store_gib:g}, but {free / GIB:.1f} GiB of memory are free; ask for less, or leave the option "
            "out for a quarter of what is free"
        )
    return wanted


def shared_store(
    num_images: int,
    budget: int,
    broadcast: Callable[[StoreHandle | None], StoreHandle | None],
    rank: int,
    processes: int,
) -> ImageStore:
    """Make one store for all processes of this machine; one that cannot reach it (on another machine) makes its own.

    Args: broadcast(handle in rank 0, None elsewhere) returns rank 0's handle everywhere; budget counts in rank 0.
    """
    if rank == 0:
        store = ImageStore(num_images, budget)
        broadcast(store.handle)
        return store
    handle = broadcast(None)
    assert handle is not None
    try:
        return ImageStore.attached(handle)
    except OSError:
        return ImageStore(num_images, min(handle.budget, free_bytes() // AUTOMATIC_SHARE) // processes)


def with_counts_told(
    batches: Iterator[T], store: ImageStore, per_epoch: int, message: Callable[[str], None]
) -> Iterator[T]:
    """Pass batches on, and say once what the store holds: when it is full, or after the first epoch of batches."""
    is_told = False
    for number, batch in enumerate(batches, start=1):
        counts = store.counts()
        if not is_told and (counts.streamed or number >= per_epoch):
            is_told = True
            message(_sentence(counts))
        yield batch


def _sentence(counts: StoreCounts) -> str:
    kept = f"image store: {counts.kept} images are kept decoded ({counts.num_bytes / GIB:.2f} GiB)"
    if counts.streamed:
        return f"{kept} and it is full; the others are decoded each time (--data.store-gib gives it more)"
    return f"{kept}; they are not decoded again"


def _pixels_start(num_images: int) -> int:
    return -(-(_HEADER_BYTES + _ROW_BYTES * num_images) // _PAGE_BYTES) * _PAGE_BYTES


def _new_file(num_bytes: int) -> tuple[int, str, str]:
    """A file of zeros: its descriptor, the path by which all processes reach it, and the path to remove in the end."""
    try:
        if sys.platform == "linux":
            file = os.memfd_create("rekindle-images", os.MFD_CLOEXEC)
            path, remove = f"/proc/{os.getpid()}/fd/{file}", ""
        else:
            file, path = tempfile.mkstemp(prefix="rekindle-images-")
            remove = path
        os.ftruncate(file, num_bytes)
    except OSError as error:
        raise RekindleError(
            f"the image store could not be made ({error}); use --data.store-gib 0 to go without"
        ) from error
    return file, path, remove


def _release(file: int, remove: str, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked worker must not take away what is its parent's
    os.close(file)
    if remove:
        os.unlink(remove)
