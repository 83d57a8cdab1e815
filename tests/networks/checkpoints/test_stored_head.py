# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rekindle.networks.checkpoints.stored_head import load_stored_head
from rekindle.networks.parts.heads import DinoHead

OLD = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


def _head(seed: int, num_prototypes: int = 12) -> DinoHead:
    torch.manual_seed(seed)
    return DinoHead(8, num_prototypes, hidden=16, bottleneck=4)


def _file(path: Path, prefixes: dict[str, str], *, with_teacher: bool = True) -> dict[str, DinoHead]:
    """A full checkpoint in the layout of DINO (or UDI): old names of the weight norm, student under DDP."""
    heads, content = {}, {}
    for seed, (entry, prefix) in enumerate(prefixes.items()):
        if entry == "teacher" and not with_teacher:
            continue
        heads[entry] = _head(seed + 10)
        content[entry] = {prefix + OLD.get(n, n): t for n, t in heads[entry].state_dict().items()}
        content[entry][prefix.replace("head.", "backbone.").replace("0.", "") + "cls_token"] = torch.zeros(1, 1, 8)
    torch.save({**content, "epoch": 3}, path)
    return heads


@pytest.mark.parametrize(
    "prefixes",
    [
        {"student": "module.head.", "teacher": "head."},
        {"student": "module.head.0.", "teacher": "head.0."},
    ],
    ids=["dino", "udi"],
)
def test_each_head_comes_from_its_own_entry(prefixes: dict[str, str], tmp_path: Path) -> None:
    stored = _file(tmp_path / "full.pth", prefixes)
    student, teacher = _head(0), _head(0)
    is_loaded, message = load_stored_head(str(tmp_path / "full.pth"), student, teacher)
    assert is_loaded and message is not None and "K = 12" in message
    for head, entry in ((student, "student"), (teacher, "teacher")):
        for name, tensor in stored[entry].state_dict().items():
            assert torch.equal(head.state_dict()[name], tensor)


def test_a_head_with_other_prototypes_starts_new_and_that_is_said(tmp_path: Path) -> None:
    _file(tmp_path / "full.pth", {"student": "module.head.", "teacher": "head."})
    student, teacher = _head(0, 5), _head(0, 5)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    is_loaded, message = load_stored_head(str(tmp_path / "full.pth"), student, teacher)
    assert not is_loaded and message is not None and "K = 12 and not 5: the head starts new" in message
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())


def test_files_without_a_head_say_nothing(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "bare.pth")
    for name in (str(tmp_path / "bare.pth"), "vit_small_patch16_224.dino", str(tmp_path)):
        assert load_stored_head(name, _head(0), _head(0)) == (False, None)


def test_both_heads_in_one_entry_are_told_apart(tmp_path: Path) -> None:
    stored = {"student": _head(10), "teacher": _head(11)}
    named = {f"{who}.head.{OLD.get(n, n)}": t for who, head in stored.items() for n, t in head.state_dict().items()}
    torch.save({"model": named}, tmp_path / "training.pth")
    heads = {"student": _head(0), "teacher": _head(0)}
    assert load_stored_head(str(tmp_path / "training.pth"), heads["student"], heads["teacher"])[0]
    for who, head in heads.items():
        assert torch.equal(head.state_dict()["mlp.0.weight"], stored[who].state_dict()["mlp.0.weight"]), who
