# SPDX-License-Identifier: Apache-2.0
"""`rekindle check` proposes groups, in words that `--group-by` takes as they stand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from rekindle.cli import main
from rekindle.data.decoding import taken_at
from rekindle.evaluation.scores.result import read_groups, read_result
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import NAMES, TINY

SMALL = ["--protocol", "dense-retrieval", "--dense-retrieval.size-px", "32", "--init", "random"]
SOURCE = np.random.default_rng(0)


def picture() -> np.ndarray:
    """Nothing that resembles another picture."""
    return np.kron(SOURCE.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.ones((2, 2, 1), np.uint8))


def save(path: Path, pixels: np.ndarray, taken: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def write(root: Path, names: dict[str, list[str]], *, taken: dict[str, str] | None = None) -> Path:
    """Labelled pictures that do not resemble each other."""
    for split, items in names.items():
        for item in items:
            save(root / "images" / split / f"{item}.jpg", picture(), (taken or {}).get(item, ""))
            save(root / "masks" / split / f"{item}.png", np.tile(np.arange(32) // 11, (32, 1)).astype(np.uint8))
    (root / "classes.json").write_text(json.dumps({"names": NAMES}))
    return root


def checked(data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    assert main(["check", "--data", str(data), "--json", *more]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["groups"]
    return found


def followed(data: Path, tmp_path: Path, words: str) -> list[str]:
    """Evaluate with what was printed, as a shell would pass it on, and return the groups."""
    out = tmp_path / "r.json"
    assert main(["evaluate", TINY, "--data", str(data), "--out", str(out), *SMALL, *shlex.split(words)]) == 0
    groups = read_groups(out.with_suffix(".csv"), read_result(out))
    assert groups is not None
    return groups


def printed(data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["check", "--data", str(data), *more]) == 0
    return capsys.readouterr().out


def words_for(told: str, source: str) -> str:
    """The first rule that was printed for a source."""
    lines = told.partition(f"\n{source}: images seem to belong together")[2].splitlines()
    return next(line.strip() for line in lines if line.startswith("  --group-by"))


def test_a_rule_by_names_is_printed_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        split: [f"{p}{n}_r{r}c0" for n in range(9) for r in range(2)] for split, p in (("train", "t"), ("val", "v"))
    }
    data = write(tmp_path / "data", names)
    told = printed(data, capsys)
    assert "9 groups of 2 images, by names" in told
    words = words_for(told, "data/val")
    assert words == r"--group-by 'name:^(.+?)_r\d+c\d+$'"
    assert followed(data, tmp_path, words) == [f"v{n}" for n in range(9) for _ in range(2)]


def test_groups_of_both_splits_are_told_of_and_the_advice_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(
        tmp_path / "data",
        {
            "train": ["p0_r5c0", "p0_r6c0", "q_r0c0", "q_r1c0"],
            "val": [f"p{n}_r{r}c0" for n in range(8) for r in range(2)],
        },
    )
    found = [entry for entry in checked(data, capsys) if entry["source"] == "data/val"]
    assert [(entry["groups"], entry["shared"]) for entry in found] == [(8, 1)]
    told = printed(data, capsys)
    assert "in other splits as well: 1; put each into one split, or add --allow-shared-groups" in told
    words = words_for(told, "data/val")
    assert main(["evaluate", TINY, "--data", str(data), *SMALL, *shlex.split(words)]) == 2
    assert len({*followed(data, tmp_path, f"{words} --allow-shared-groups")}) == 8


def test_independent_images_get_no_proposal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(
        tmp_path / "data", {"train": [f"{n:03}" for n in range(20)], "val": [f"{n:03}" for n in range(20, 40)]}
    )
    out = tmp_path / "out"
    assert checked(data, capsys, "--out", str(out)) == []
    assert "belong together" not in printed(data, capsys)
    assert not (out / "groups.csv").exists()
    classes = write_classes(tmp_path / "classes", num_test=12, size=32) / "val"
    assert main(["check", "--images", str(classes / "amber"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == []


def test_times_of_the_files_give_a_table_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{n * n + 11}" for n in range(16)]  # the numbers say nothing
    taken = {name: f"2023:05:01 1{n // 4}:00:{2 * (n % 4):02}" for n, name in enumerate(names)}
    data = write(
        tmp_path / "data",
        {"train": ["t1", "t5"], "val": names},
        taken=taken | {t: "2023:04:01 10:00:00" for t in ("t1", "t5")},
    )
    assert taken_at(str(data / "images" / "val" / "11.jpg")) == 1682935200.0
    assert taken_at(str(data / "masks" / "val" / "11.png")) is None
    told = printed(data, capsys)
    assert "(give --out DIR, and a table for --group-by is written)\n    4 groups of 4 images" in told
    out = tmp_path / "checked out"
    told = printed(data, capsys, "--out", str(out))
    groups = followed(data, tmp_path, words_for(told, "data/val"))
    by_name = dict(zip(sorted(names), groups, strict=True))
    assert [by_name[name] for name in names] == [f"2023-05-01 1{n // 4}:00:00" for n in range(16)]


def test_times_in_names_count_where_files_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"20230501_1{n // 4}00{7 * n % 30:02}" for n in range(16)]
    data = write(tmp_path / "data", {"train": ["20230401_100000", "20230401_100011"], "val": names})
    found = [entry for entry in checked(data, capsys, "--out", str(tmp_path / "out")) if entry["from"] == "times"]
    assert [(e["source"], e["groups"], e["group_by"]) for e in found] == [
        ("data/val", 4, f"{tmp_path / 'out' / 'groups.csv'}:series")
    ]


def test_near_copies_give_a_table_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{n * n + 11}" for n in range(12)]
    data = write(tmp_path / "data", {"train": ["3", "5"], "val": names})
    lighter = np.asarray(Image.open(data / "images" / "val" / "11.jpg")) // 2 + 60
    save(data / "images" / "val" / "36.jpg", lighter.astype(np.uint8))
    out = tmp_path / "out"
    told = printed(data, capsys, "--out", str(out))
    assert "11 groups of 1 to 2 images (median 1), by near-copies" in told
    groups = followed(data, tmp_path, words_for(told, "data/val"))
    alike = [name for name, group in zip(sorted(names), groups, strict=True) if group == "val: 11"]
    assert alike == ["11", "36"]
    assert len({*groups}) == 11


def test_a_damaged_file_has_no_time(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no image")
    assert taken_at(str(tmp_path / "x.jpg")) is None
    save(tmp_path / "y.jpg", picture(), "yesterday")
    assert taken_at(str(tmp_path / "y.jpg")) is None
