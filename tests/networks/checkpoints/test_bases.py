# SPDX-License-Identifier: Apache-2.0
"""The bases that ship: whole, and the ones that their page names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch

from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining.options import read_run_file

BASES = Path(__file__).parents[3] / "bases"
FILES = sorted(BASES.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_base_is_the_file_that_its_page_names(path: Path) -> None:
    entries = re.split(r"^- ", (BASES / "README.md").read_text(), flags=re.MULTILINE)
    entry = next(entry for entry in entries if entry.startswith(f"`{path.name}`"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in entry.split("\n\n")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_base_loads_whole_in_full_precision(path: Path) -> None:
    backbone, report = create_backbone(str(path), NetworkOptions())
    matched = re.search(r"matched (\d+) of (\d+)", str(report))
    assert matched is not None and matched[1] == matched[2]
    assert (backbone.width, len(backbone.vit.blocks), backbone.patch_size) == (192, 12, 16)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    halves = torch.cat([-torch.ones(1, 3, 112, 56), torch.ones(1, 3, 112, 56)], dim=3)
    with torch.inference_mode():
        patches = torch.nn.functional.normalize(backbone(halves).patches[0], dim=-1)
    same, other = (patches[3, 1] * patches[:, 1]).sum(-1), (patches[3, 1] * patches[:, 5]).sum(-1)
    assert float(same.min()) > float(other.max())  # dark and light are told apart: no collapse


@pytest.mark.parametrize("name", ["mae", "dino"])
def test_the_run_files_of_the_bases_can_be_read(name: str) -> None:
    tree = read_run_file(BASES / "training" / f"{name}.yaml")
    assert tree["images"] == "imagenet1k-sample/images"
    assert tree["train"] == "all"
