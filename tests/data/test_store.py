# SPDX-License-Identifier: Apache-2.0
"""The image store: decoded once, within its budget, the same for everybody who maps it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data import memory
from rekindle.data.decoding import UnreadableImage
from rekindle.data.images import find_images
from rekindle.data.store import GIB, ImageStore, StoredImages, shared_store, store_budget, with_counts_told
from rekindle.data.training import StepBatches, TrainingImages
from rekindle.views.multicrop import MultiCrop
from rekindle.views.options import ViewsOptions
from tests.data.store_processes import OPTIONS, READ, SIZE, SLOT, Counting, copied, expected, fill, write_and_hang
from tests.engine.running import write_images

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on warns of threads


@pytest.fixture
def source(tmp_path: Path) -> Counting:
    return Counting(find_images(write_images(tmp_path / "images")).refs, tmp_path / "decodes")


def test_a_second_reading_decodes_nothing_and_gives_the_same_image(source: Counting) -> None:
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    for _ in range(3):
        for i in range(len(source)):
            image = images.read(i, **READ)
            assert torch.equal(image, expected(source, i))
            assert image.stride() == expected(source, i).stride()  # [H, W, 3] in memory, which the resize wants
    assert source.decodes() == len(source) == 9
    assert images.store.counts().kept == 9
    first, again = images.read(4, **READ), images.read(4, **READ)
    assert first.data_ptr() == again.data_ptr(), "a view of the store, not a copy"


def test_the_budget_holds_and_what_does_not_fit_is_decoded_each_time(source: Counting) -> None:
    budget = 3 * SLOT + 100
    images = StoredImages(source, ImageStore(len(source), budget), OPTIONS)
    for _ in range(2):
        for i in range(len(source)):
            assert torch.equal(images.read(i, **READ), expected(source, i))
    counts = images.store.counts()
    assert (counts.kept, counts.streamed) == (3, 6)
    assert 3 * SIZE <= counts.num_bytes <= budget
    assert source.decodes() == 9 + 6


def test_an_image_that_no_budget_holds_is_read_all_the_same(source: Counting) -> None:
    images = StoredImages(source, ImageStore(len(source), 10), OPTIONS)
    assert torch.equal(images.read(0, **READ), expected(source, 0))
    assert images.store.counts().streamed == 1


def test_what_was_kept_for_other_settings_is_not_handed_out(source: Counting) -> None:
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    images.read(0, **READ)
    with pytest.raises(UnreadableImage, match=r"exceed data.max_pixels = 5"):
        images.read(0, draft_px=None, max_pixels=5)
    images.read(0, **READ)
    assert source.decodes() == 2


def test_a_failure_is_remembered_with_its_reason(source: Counting, tmp_path: Path) -> None:
    (tmp_path / "images" / "03.png").write_text("no picture")
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    said = []
    for _ in range(3):
        with pytest.raises(UnreadableImage) as caught:
            images.read(3, **READ)
        said.append((caught.value.name, caught.value.reason))
    assert len(set(said)) == 1 and said[0][0].endswith("03.png") and "no known image format" in said[0][1]
    assert source.decodes() == 1
    assert images.store.counts().unreadable == 1


def test_a_failure_that_may_pass_is_tried_again(source: Counting, tmp_path: Path) -> None:
    path = tmp_path / "images" / "03.png"
    content = path.read_bytes()
    path.unlink()
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    with pytest.raises(UnreadableImage, match="does not exist"):
        images.read(3, **READ)
    path.write_bytes(content)
    assert torch.equal(images.read(3, **READ), expected(source, 3))


def test_a_pickled_store_is_the_same_store_and_a_stale_handle_is_refused(source: Counting) -> None:
    store = ImageStore(len(source), 1 << 20)
    other: ImageStore = pickle.loads(pickle.dumps(store))
    StoredImages(source, other, OPTIONS).read(5, **READ)
    found = store.get(5)
    assert isinstance(found, Tensor) and torch.equal(found, expected(source, 5))
    text = pickle.dumps(store)
    del store, other, found
    gc.collect()
    stale = ImageStore(3, 1 << 20)  # takes the number of the file that was closed
    with pytest.raises(FileNotFoundError):
        pickle.loads(text)
    del stale


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_what_they_decode(source: Counting, method: str) -> None:
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    training = TrainingImages(images, copied, 0, OPTIONS)
    batches = StepBatches(9, 3, 1, [0], steps=9, start_step=0, seed=0)
    loader: DataLoader[Any] = DataLoader(
        training, batch_sampler=batches, collate_fn=list, num_workers=2, multiprocessing_context=method
    )
    processes, seen = set(), 0
    for batch in loader:
        for index, _, (process, image) in batch:
            assert torch.equal(image, expected(source, index))
            processes.add(process)
            seen += 1
    assert seen == 27 and len(processes) == 2 and os.getpid() not in processes
    assert images.store.counts().kept == 9
    assert 9 <= source.decodes() <= 11, "nothing twice but what two workers wanted at the same moment"


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_writers_at_the_same_moment_keep_every_image_once_and_whole(source: Counting, method: str) -> None:
    context: Any = mp.get_context(method)
    images = StoredImages(source, ImageStore(len(source), 9 * SLOT), OPTIONS)
    barrier = context.Barrier(2)
    writers = [context.Process(target=fill, args=(images, barrier)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    counts = images.store.counts()
    assert (counts.kept, counts.streamed, counts.num_bytes) == (9, 0, 9 * SLOT)  # each has just the room of one
    for i in range(9):
        found = images.store.get(i)
        assert isinstance(found, Tensor) and torch.equal(found, expected(source, i))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_writer_killed_in_the_middle_leaves_a_store_that_goes_on(source: Counting, method: str) -> None:
    context: Any = mp.get_context(method)
    store = ImageStore(len(source), 9 * SLOT)
    images = StoredImages(source, store, OPTIONS)
    images.read(0, **READ)
    told_half = context.Event()
    writer = context.Process(target=write_and_hang, args=(store, told_half))
    writer.start()
    assert told_half.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert int(store._pixels[SLOT]) == 77, "it was in the middle of writing"
    assert store.get(2) is None
    for _ in range(2):
        for i in range(9):
            assert torch.equal(images.read(i, **READ), expected(source, i))
    assert store.counts().kept == 9, "neither the lock nor the room of the dead is lost"


def test_ranks_share_one_store_and_one_that_cannot_reach_it_has_its_own(source: Counting) -> None:
    passed: list[Any] = []

    def send(handle: Any) -> Any:
        passed.append(handle)
        return handle

    first = shared_store(9, 1 << 20, send, 0, 2)
    second = shared_store(9, 0, lambda handle: passed[0], 1, 2)
    StoredImages(source, second, OPTIONS).read(1, **READ)
    assert first.counts().kept == 1
    away = pickle.loads(pickle.dumps(passed[0]).replace(b"/proc/", b"/prok/"))
    alone = shared_store(9, 0, lambda handle: away, 1, 2)
    assert alone.counts().kept == 0
    StoredImages(source, alone, OPTIONS).read(2, **READ)
    assert (alone.counts().kept, first.counts().kept) == (1, 1)
    assert alone.handle.budget <= first.handle.budget // 2


def test_nothing_is_left_behind(source: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    for platform in ("linux", "elsewhere"):
        monkeypatch.setattr("rekindle.data.store.sys.platform", platform)
        store = ImageStore(9, 1 << 20)
        assert store.handle.path.startswith("/proc/" if platform == "linux" else str(tmp_path))
        images = StoredImages(source, store, OPTIONS)
        images.read(0, **READ)
        images.read(0, **READ)
        child = mp.get_context("fork").Process(target=fill, args=(images, mp.get_context("fork").Barrier(1)))
        assert "rekindle-images" in " ".join(_open_files())
        child.start()
        child.join(30)
        assert child.exitcode == 0 and store.counts().kept == 9
        del store, images, child
        gc.collect()
    assert set(tmp_path.iterdir()) - before == {tmp_path / "decodes"}
    assert "rekindle-images" not in " ".join(_open_files())


def _open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def test_views_leave_the_image_as_it_is(source: Counting) -> None:
    """A stored image is handed out without a copy, so nobody may write into it."""
    images = StoredImages(source, ImageStore(len(source), 1 << 20), OPTIONS)
    always = (1.0, 1.0, 1.0)
    views = MultiCrop(ViewsOptions(global_size_px=48, local_size_px=16, jitter_p=1.0, blur_p=always, solarize_p=always))
    for draw in range(20):
        views(images.read(draw % 9, **READ), generator(0, "views", draw))
    for i in range(9):
        assert torch.equal(images.read(i, **READ), expected(source, i))
    assert source.decodes() == 9


def test_a_quarter_of_what_is_free_is_taken_and_more_than_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.data.store.free_bytes", lambda: 8 * GIB)
    assert store_budget(None) == 2 * GIB
    assert store_budget(1.5) == 3 * GIB // 2
    assert store_budget(0) == 0
    with pytest.raises(RequestError, match=r"data.store_gib = 9, but 8.0 GiB of memory are free; ask for less"):
        store_budget(9)


def test_a_limit_of_a_control_group_counts_at_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked by hand: the outer group leaves 1000 - 700 + 100 = 400, the inner one has no limit of its own."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/outer/inner\n")
    for folder, limit, used in ((inner, "max", 600), (inner.parent, "1000", 700)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "own")
    assert memory.free_bytes() == 400
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "absent")
    assert memory.free_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (1 << 20, "9 images are kept decoded (0.00 GiB); they are not decoded again"),
        (2 * SLOT, "2 images are kept decoded (0.00 GiB) and it is full; the others are decoded each time"),
    ],
)
def test_what_is_kept_is_said_once(source: Counting, budget: int, line: str) -> None:
    images = StoredImages(source, ImageStore(len(source), budget), OPTIONS)

    def batches() -> Iterator[int]:
        for i in range(20):
            images.read(i % 9, **READ)
            yield i

    said: list[str] = []
    assert list(with_counts_told(batches(), images.store, 9, said.append)) == list(range(20))
    assert len(said) == 1 and line in said[0]
