# SPDX-License-Identifier: Apache-2.0
"""Retrieval data and their lists, which may be pickles of strangers."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rekindle.core.errors import RequestError
from rekindle.data.labelled.retrieval import RetrievalFolder, plain_unpickled
from tests.evaluation.pictures import save

TRUTH: dict[str, Any] = {
    "imlist": ["d0", "d1", "d2"],
    "qimlist": ["q0"],
    "gnd": [{"easy": [1], "hard": [0], "junk": [], "bbx": [1.0, 2.0, 9.0, 10.0]}],
}


def write_retrieval(root: Path, truth: dict[str, Any], *, kind: str = "json", name: str = "toy") -> Path:
    for number, image in enumerate([*truth["imlist"], *truth["qimlist"]]):
        pixels = np.full((16, 24, 3), 10 * number, np.uint8)
        save(root / name / "jpg" / f"{image}.jpg", pixels)
    path = root / name / f"gnd_{name}.{kind}"
    path.write_bytes(json.dumps(truth).encode() if kind == "json" else pickle.dumps(truth))
    return root


def test_pickle_and_json_say_the_same(tmp_path: Path) -> None:
    arrays = {**TRUTH, "gnd": [{k: np.array(v) for k, v in TRUTH["gnd"][0].items()}]}
    plain = RetrievalFolder(write_retrieval(tmp_path / "a", TRUTH), "toy")
    pickled = RetrievalFolder(write_retrieval(tmp_path / "b", arrays, kind="pkl"), "toy")
    plain.check()
    assert plain.truth == pickled.truth
    assert plain.truth[0].hard == (0,)
    assert plain.truth[0].box == (1.0, 2.0, 9.0, 10.0)
    assert plain.items == ["q0"] and plain.database == ["d0", "d1", "d2"]
    assert plain.image(0).float().mean() == pytest.approx(30, abs=1)
    assert plain.database_image(2).float().mean() == pytest.approx(20, abs=1)


def test_pickles_of_the_second_python_are_read() -> None:
    """The published lists were written by Python 2: NumPy 1's module names and byte strings."""
    old = pickle.dumps({"easy": np.array([3, 4]), "one": np.int64(7)}, protocol=2).replace(
        b"numpy._core", b"numpy.core"
    )
    found = plain_unpickled(old)
    assert found["easy"].tolist() == [3, 4] and found["one"] == 7


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_retrieval(tmp_path, TRUTH)
    (root / "toy" / "gnd_toy.json").unlink()
    (root / "toy" / "gnd_toy.pkl").write_bytes(pickle.dumps({"imlist": [Harmful()]}))
    with pytest.raises(RequestError, match=r"gnd_toy\.pkl cannot be read: it names posix\.mkdir"):
        RetrievalFolder(root, "toy")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gnd": []}, "1 queries, but truth of 0"),
        ({"gnd": [{"easy": [3], "hard": [], "junk": []}]}, r"names image 3, and imlist has 3 \(counted from 0\)"),
        ({"gnd": [{"easy": [-1], "hard": [], "junk": []}]}, "position -1 is below 0"),
        ({"gnd": [{"easy": [1], "hard": [], "junk": [1]}]}, "a position stands twice"),
        ({"gnd": [{"easy": [1]}]}, "not complete"),
        ({"gnd": [7]}, "not complete"),
        ({"qimlist": []}, "0 queries"),
    ],
)
def test_incomplete_lists_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RetrievalFolder(write_retrieval(tmp_path, TRUTH | change), "toy")


def test_missing_images_and_boxes_off_the_image_are_listed(tmp_path: Path) -> None:
    truth = {**TRUTH, "gnd": [{**TRUTH["gnd"][0], "bbx": [0, 0, 99, 5]}]}
    root = write_retrieval(tmp_path, truth)
    (root / "toy" / "jpg" / "d1.jpg").unlink()
    with pytest.raises(RequestError, match=r"(?s)box .*q0.* on 24 x 16.*unreadable files .*d1 .*does not exist"):
        RetrievalFolder(root, "toy").check()


def test_the_set_and_its_list_must_be_there(tmp_path: Path) -> None:
    root = write_retrieval(tmp_path, TRUTH)
    with pytest.raises(RequestError, match=r"no set 'val'; sets here: toy \(--split\)"):
        RetrievalFolder(root, "val")
    (root / "toy" / "gnd_toy.json").unlink()
    with pytest.raises(RequestError, match=r"neither gnd_toy\.pkl nor gnd_toy\.json"):
        RetrievalFolder(root, "toy")
