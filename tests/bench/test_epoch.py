# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.bench.epoch import Decoded, Kept, TwoEpochs, _Notes, _row, images_of
from rekindle.bench.timing import SideTimes
from rekindle.data import images as images_module
from rekindle.data.images import find_images
from rekindle.engine.watcher import StepReport
from tests.bench.cases import tiny


def report(step: int, images_per_s: float, wait: float) -> StepReport:
    return StepReport(step, 4, 1.0, images_per_s, wait, 0, 0.0)


def test_epochs_are_told_apart_by_what_the_loop_reports() -> None:
    """By hand: batches of 8; after 2 steps 4 s, half of them waiting; after 4 steps 6 s, a third of them waiting."""
    notes = _Notes(batch_size=8, steps_per_epoch=2)
    for step in (report(1, 3.0, 0.9), report(2, 16 / 4, 0.5), report(3, 5.0, 0.4), report(4, 32 / 6, 2.0 / 6)):
        notes.step(step)
    first, second = notes.epochs()
    assert first == {"seconds": pytest.approx(4.0), "wait": pytest.approx(2.0), "images": 16}
    assert second == {"seconds": pytest.approx(2.0), "wait": pytest.approx(0.0), "images": 16}


def test_a_row_leaves_the_warm_up_out() -> None:
    def epochs(first: float, second: float) -> list[dict[str, float]]:
        return [{"seconds": s, "wait": s / 4, "images": 16} for s in (first, second)]

    side = SideTimes("kept", (0.0,), 32, 1.0, 5, 9, {"epochs": [epochs(90, 90), epochs(4, 2), epochs(6, 3)]})
    row = _row(side, 1, warmup=1)
    assert (row.label, row.seconds, row.images) == ("kept, second epoch", (2, 3), 16)
    assert row.facts["data_wait"] == [0.25, 0.25]
    assert row.peak_bytes == 9


@pytest.mark.parametrize(("side", "decoded"), [(Kept, 8), (Decoded, 16)])
def test_a_round_trains_for_two_epochs_and_decodes_once_or_twice(
    side: type[TwoEpochs], decoded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, original = tmp_path / "decodes", images_module.read_image

    def counting(*arguments: object, **named: object) -> object:
        with note.open("ab") as stream:
            stream.write(b"x")
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(images_module, "read_image", counting)
    case = tiny("epoch")
    bench = side({**case, "source": str(images_of(case, tmp_path))})
    assert bench.run() == 16
    assert note.stat().st_size == decoded
    (epochs,) = bench._epochs
    assert len(epochs) == 2
    assert all(e["images"] == 8 and 0 <= e["wait"] < e["seconds"] for e in epochs)


def test_images_are_made_or_taken_and_never_more_than_fit(tmp_path: Path) -> None:
    made = find_images(images_of(tiny("epoch"), tmp_path))
    assert len(made) == 8 and made.read(0).shape == (3, 48, 64)
    taken = images_of(tiny("epoch", images=str(tmp_path / "images"), num_images=5), tmp_path)
    assert [made.refs[i].path for i in range(5)] == [ref.path for ref in find_images(taken).refs]
    many = images_of(tiny("epoch", num_images=1000, batch_size=1), tmp_path / "many")
    assert len(find_images(many)) == 24
