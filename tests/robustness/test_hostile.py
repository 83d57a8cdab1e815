# SPDX-License-Identifier: Apache-2.0
"""Files of strangers: nothing in them is run, and a lie in them is a message, not a crash or a hang."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.text_files import MAX_BYTES, parse_json, read_json, read_yaml
from rekindle.data.images import find_images
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.matrix.grid import read_grid
from rekindle.networks.checkpoints.reading import read_checkpoint
from rekindle.pretraining.options import read_run_file
from tests.engine.running import run, write_images
from tests.evaluation.toy import write_data


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["plain", "torch", "inside"])
def test_a_checkpoint_that_is_a_program_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pth", tmp_path / "was run"
    if kind == "plain":
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    else:
        torch.save(Bomb(mark) if kind == "torch" else {"model": {"a": torch.ones(2)}, "args": Bomb(mark)}, path)
    with pytest.raises(RequestError, match=r"code is never run"):
        read_checkpoint(path)
    assert not mark.exists()


def test_a_runs_own_checkpoint_swapped_for_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    images, out, mark = write_images(tmp_path / "images"), tmp_path / "run", tmp_path / "was run"
    run(images, out, steps=1)
    (out / "model.json").unlink()
    for path in (out / "checkpoints").iterdir():
        torch.save({"format": 2, "step": 0, "method": Bomb(mark)}, path)
    with pytest.raises(RekindleError, match="damaged"):
        run(images, out, steps=1, resume=True)
    assert not mark.exists()


def test_mutated_pickles_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    whole, path, dice = io.BytesIO(), tmp_path / "a.pth", random.Random(0)
    torch.save({"state_dict": {f"blocks.{i}.w": torch.randn(4, 4) for i in range(6)}, "epoch": 3}, whole)
    plain = pickle.dumps({"state_dict": {"w": [1.0, 2.0]}, "names": ["a"] * 9})
    refused = 0
    for number in range(300):
        content = bytearray(whole.getvalue() if number % 2 else plain)
        for _ in range(2 ** dice.randrange(6)):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content[: dice.randrange(len(content))] if number % 5 == 0 else content)
        try:
            read_checkpoint(path)
        except RequestError:
            refused += 1
    assert refused > 100


def lying_headers() -> dict[str, bytes]:
    """Files that end in .safetensors and are not."""

    def file(header: object, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return {
        "header longer than the file": struct.pack("<Q", 2**60) + b"{}",
        "header of a gigabyte": struct.pack("<Q", 2**30) + b"{" + bytes(1000),
        "no header": b"\0\0",
        "not JSON": file(b"{nonsense"),
        "deep": file(b"[" * 50_000),
        "data beyond the end": file({"a": tensor}, bytes(4)),
        "shape larger than the data": file({"a": tensor | {"shape": [2**40, 2**40]}}, bytes(16)),
        "negative place": file({"a": tensor | {"data_offsets": [-16, 0]}}, bytes(16)),
        "overlapping": file({"a": tensor, "b": tensor}, bytes(16)),
        "unknown type": file({"a": tensor | {"dtype": "PY_OBJECT"}}, bytes(16)),
        "bytes behind": file({"a": tensor}, bytes(64)),
        "description that is no JSON": save({"a": torch.ones(2)}, {"rekindle": "{"}),
        "description without end": save({"a": torch.ones(2)}, {"rekindle": "[" * 100_000}),
    }


@pytest.mark.parametrize("case", lying_headers())
def test_a_safetensors_header_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(lying_headers()[case])
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        read_checkpoint(path)


def test_an_archive_with_paths_that_climb_writes_nothing_and_follows_no_link(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(pixels, "PNG")
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.png"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(secret)
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for name in ("../../up.png", "/absolute.png", "plain.png"):
            member = tarfile.TarInfo(name)
            member.size = len(pixels.getvalue())
            archive.addfile(member, io.BytesIO(pixels.getvalue()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    source = find_images(tmp_path / "in" / "a.tar")
    assert [ref.member for ref in source.refs] == ["../../up.png", "/absolute.png", "plain.png"]
    assert all(int(source.read(i).max()) == 7 for i in range(3))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in", "secret.png"]


def hostile_yaml(mark: Path) -> dict[str, str]:
    """Run files that want to be more than values."""
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for above, below in zip("bcdefghij", "abcdefghi", strict=True):
        laughs += f"{above}: &{above} [{', '.join([f'*{below}'] * 9)}]\n"
    return {
        "code": f"images: !!python/object/apply:os.mkdir ['{mark}']\n",
        "object": "images: !!python/name:os.system\n",
        "laughs": laughs,
        "circle": "images: &a [*a]\n",
        "deep": "images: " + "[" * 5000 + "]" * 5000,
        "binary": "images: \x00\x01\n",
    }


@pytest.mark.parametrize("case", hostile_yaml(Path()))
def test_a_run_file_or_grid_with_code_or_without_end_is_refused(case: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "run.yaml", tmp_path / "was run"
    path.write_text(hostile_yaml(mark)[case])
    with pytest.raises(RequestError, match="not valid YAML"):
        read_run_file(path)
    with pytest.raises(RequestError, match="not valid YAML"):
        read_grid(path)
    assert not mark.exists()


def test_aliases_in_measure_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("common: &c {steps: 3}\nother: *c\n")
    assert read_yaml(tmp_path / "a.yaml") == {"common": {"steps": 3}, "other": {"steps": 3}}


def test_json_without_end_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 1_000_000)
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_json(path)


@pytest.mark.parametrize("content", ["[" * 1_000_000, '{"names": {"a": 1}}', "null", '{"names": []}', "\udcff"])
def test_a_class_list_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "classes.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RequestError, match=r"classes\.json"):
        SegmentationFolder(data, "val")


def test_masks_with_ids_beyond_the_classes_are_found_before_anything_is_computed(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    mask = next((data / "masks" / "val").iterdir())
    with Image.open(mask) as image:
        ids = np.array(image)
    ids[0, 0] = 200
    Image.fromarray(ids).save(mask)
    folder = SegmentationFolder(data, "val")
    with pytest.raises(RequestError, match=rf"(?s)out of range.*{mask.stem} .ids 200"):
        folder.check()


def test_a_yaml_error_is_one_of_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [*a]")
    with pytest.raises(yaml.YAMLError, match="refers to what it stands in"):
        read_yaml(tmp_path / "a.yaml")


def test_a_zip_that_says_it_is_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(RequestError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
