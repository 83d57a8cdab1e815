# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import pickle
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.images import ImageSource, find_images


def picture(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (level, 0, 0)).save(path)
    return path


def levels(source: ImageSource) -> list[int]:
    return [int(source.read(index)[0, 0, 0]) for index in range(len(source))]


def tar(path: Path, members: dict[str, int]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, level in members.items():
            file = io.BytesIO()
            Image.new("RGB", (4, 3), (level, 0, 0)).save(file, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            archive.addfile(info, io.BytesIO(file.getvalue()))
        note = tarfile.TarInfo("note.json")
        note.size = 2
        archive.addfile(note, io.BytesIO(b"{}"))
    return path


def test_a_folder_is_searched_to_any_depth_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    picture(tmp_path / "b.PNG", 2)
    picture(tmp_path / "a" / "deep" / "x.tiff", 1)
    picture(tmp_path / "c.bmp", 3)
    picture(tmp_path / ".hidden" / "y.png")
    picture(tmp_path / "._b.png")
    (tmp_path / "notes.txt").write_text("no image")
    source = find_images(tmp_path)
    assert [Path(source.name(i)).name for i in range(len(source))] == ["x.tiff", "b.PNG", "c.bmp"]
    assert levels(source) == [1, 2, 3]


def test_a_loop_of_links_ends_and_linked_folders_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png", 5)
    root = tmp_path / "root"
    picture(root / "b.png", 6)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert levels(find_images(root)) == [6, 5]


def test_a_glob_takes_what_it_matches(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "b" / "2.png", 2)
    picture(tmp_path / "b" / "3.bmp", 3)
    assert levels(find_images(f"{tmp_path}/**/*.png")) == [1, 2]
    assert levels(find_images(f"{tmp_path}/b/*")) == [2, 3]
    assert levels(find_images(tmp_path / "b" / "3.bmp")) == [3]


def test_lists_keep_their_order_and_start_at_their_folder(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "1.png", 1)
    second = picture(tmp_path / "x" / "2.png", 2)
    text = tmp_path / "list.txt"
    text.write_text(f"# comment\n{second}\n\nx/1.png\n")
    assert levels(find_images(text)) == [2, 1]
    named = tmp_path / "named.csv"
    named.write_text("label,file\n0,x/2.png\n1,x/1.png\n")
    assert levels(find_images(named)) == [2, 1]
    for content in ("x/1.png,0\nx/2.png,1\n", "picture,label\nx/1.png,0\nx/2.png,1\n"):
        bare = tmp_path / "bare.csv"
        bare.write_text(content)
        assert levels(find_images(bare)) == [1, 2]


def test_a_parquet_list_is_read_by_its_column_of_paths(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    picture(tmp_path / "1.png", 1)
    parquet.write_table(arrow.table({"label": [3], "path": ["1.png"]}), tmp_path / "list.parquet")
    assert levels(find_images(tmp_path / "list.parquet")) == [1]
    parquet.write_table(arrow.table({"label": [3]}), tmp_path / "other.parquet")
    with pytest.raises(RequestError, match="'label' does not hold paths; name the column"):
        find_images(tmp_path / "other.parquet")


def test_images_are_read_out_of_tar_files_by_pattern(tmp_path: Path) -> None:
    tar(tmp_path / "shards-000.tar", {"b.png": 2, "a.png": 1})
    tar(tmp_path / "shards-001.tar", {"deep/c.png": 3, ".hidden.png": 9})
    for pattern in ("shards-{000..001}.tar", "shards-*.tar", "shards-{000,001}.tar"):
        source = find_images(tmp_path / pattern)
        assert levels(source) == [1, 2, 3]
    assert source.name(2).endswith("shards-001.tar:deep/c.png")
    assert levels(pickle.loads(pickle.dumps(source))) == [1, 2, 3]


def test_a_hub_data_set_is_read_by_its_image_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which is an extra: the same calls, two rows."""

    class FakeImage:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class Table:
        def __init__(self, name: str) -> None:
            self.features: dict[str, object] = {"label": object(), name: FakeImage()}

        def select_columns(self, names: list[str]) -> Table:
            self.features = {name: self.features[name] for name in names}
            return self

        def rename_column(self, old: str, new: str) -> Table:
            self.features[new] = self.features.pop(old)
            return self

        def cast_column(self, name: str, kind: FakeImage) -> Table:
            self.features[name] = kind
            return self

        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> dict[str, dict[str, bytes]]:
            kind = self.features["image"]
            assert isinstance(kind, FakeImage)
            assert not kind.decode
            file = io.BytesIO()
            Image.new("RGB", (2, 2), (row + 5, 0, 0)).save(file, "PNG")
            return {"image": {"bytes": file.getvalue()}}

    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> Table:
        asked.append((name, split))
        if name == "absent":
            raise ValueError("no such data set")
        return Table("photo" if split == "test" else "image")

    package = types.SimpleNamespace(
        Image=FakeImage,
        load_dataset=load_dataset,
        exceptions=types.SimpleNamespace(DatasetsError=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    assert levels(find_images("hf:owner/name")) == [5, 6]
    assert levels(find_images("hf:owner/name:test")) == [5, 6]
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
    with pytest.raises(RequestError, match=r"could not be loaded \(no such data set\); check its name, its split"):
        find_images("hf:absent")


def test_without_the_package_a_hub_data_set_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"package datasets; install it with: pip install 'rekindle\[readers\]'"):
        find_images("hf:owner/name")


def test_a_source_without_images_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.md").write_text("x")
    packed = tmp_path / "packed"
    packed.mkdir()
    tar(packed / "s.tar", {"a.png": 1})
    damaged = tmp_path / "bad.tar"
    damaged.write_bytes(b"nonsense" * 200)
    listed = tmp_path / "list.txt"
    listed.write_text("absent.png\n")
    blank = tmp_path / "blank.csv"
    blank.write_text("")
    short = tmp_path / "short.csv"
    short.write_text("label,file\n1\n")
    cases = {
        str(tmp_path / "absent"): "nothing is there; check the spelling",
        str(empty): "the folder is empty",
        str(text): "no file with an image suffix",
        str(packed): r"holds tar files; give '.*\*\.tar'",
        str(text / "a.md"): "without an image suffix",
        str(text / "*.md"): "1 paths match, none is an image",
        str(tmp_path / "a.tar.gz"): "unpack it, or pack it again as a plain",
        str(packed / "s{.tar,-2.tar}"): r"1 files of the pattern are missing, first .*s-2\.tar; copy them",
        str(damaged): "not a readable tar file .* copy it again",
        str(listed): r"1 of 1 listed files do not exist, first .*absent\.png; relative paths start",
        str(blank): "the list has no entry",
        str(short): "entry 1 has no column 2; give every row a path",
        "https://example.org/a.zip": "download the files first",
    }
    for source, message in cases.items():
        with pytest.raises(RequestError, match=message) as error:
            find_images(source)
        assert source in str(error.value)
        assert error.value.exit_code == 2


def test_real_photographs_are_found_and_read(real_data: Path) -> None:
    source = find_images(real_data / "camvid" / "images" / "val")
    assert len(source) == 124
    assert source.read(0).shape == (3, 360, 480)
    assert source.read(0).dtype == torch.uint8
