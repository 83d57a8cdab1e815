# SPDX-License-Identifier: Apache-2.0
"""Each method gives the numbers that its authors' code gives for one small case, and none of these changes unannounced."""

from __future__ import annotations

import hashlib
import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from rekindle.pretraining.options import resolve
from tests.golden.cases import OPTIONS, case, measured, settings
from tests.golden.numbers import GOLDEN

CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
AHEAD = {"msn": 1}  # its schedules count the step that is being done
every_method = pytest.mark.parametrize("name", list(GOLDEN))


def _digest(name: str) -> str:
    text = json.dumps({kind: value for kind, value in GOLDEN[name].items() if kind != "ran"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _announced(name: str, digest: str, changelog: str) -> bool:
    """Whether an entry under a heading Numbers names the method, carries the digest, and says something besides."""
    for section in re.findall(r"^### Numbers$(.*?)(?=^##|\Z)", changelog, re.MULTILINE | re.DOTALL):
        for entry in re.split(r"^- ", section, flags=re.MULTILINE):
            text = " ".join(entry.split())
            if f"`{name}` {digest}" in text and len(re.sub(r"`\w+` [0-9a-f]{12},?", "", text)) > 40:
                return True
    return False


@every_method
def test_losses_gradients_and_centres_are_those_of_the_authors_code(name: str) -> None:
    found, expected = measured(case(name)), GOLDEN[name]
    for kind, numbers in found.items():
        assert numbers == pytest.approx(expected[kind], rel=1e-4), f"{kind}; {expected['code']}: {expected['ran']}"


@every_method
def test_schedules_and_decay_from_scratch_are_those_of_the_authors_code(name: str) -> None:
    expected = GOLDEN[name]
    found = settings(name, case(name).method, ahead=AHEAD.get(name, 0))
    for kind, numbers in found.items():
        tolerance: dict[str, Any] = {"rel": 1e-3 if name in AHEAD else 1e-6, "abs": 1e-12}
        assert numbers == pytest.approx(expected[kind], **tolerance), f"{kind}; {expected['code']}: {expected['ran']}"


@every_method
def test_what_is_set_from_scratch_is_what_the_authors_script_sets(name: str) -> None:
    options = resolve({}, {"method": name, "init": "random", "train": "all"}).options
    wanted = GOLDEN[name]["settings"]
    found = {dotted: reduce(getattr, dotted.split("."), options) for dotted in wanted}
    assert found == wanted, GOLDEN[name]["code"]


def test_every_case_has_its_numbers() -> None:
    assert set(OPTIONS) == set(GOLDEN)


@every_method
def test_a_golden_number_changes_only_with_an_entry_under_numbers(name: str) -> None:
    digest = _digest(name)
    assert _announced(name, digest, CHANGELOG.read_text(encoding="utf-8")), (
        f"the golden numbers of {name} are not announced: under **Numbers** of CHANGELOG.md, say what changed and why, and write "
        f"`{name}` {digest} in that entry"
    )


def test_the_guard_sees_a_changed_number_an_entry_elsewhere_and_an_entry_without_words() -> None:
    digest, words = _digest("dino"), "the loss is divided by the pairs that there are, as its code has it"
    assert _announced("dino", digest, f"### Numbers\n\n- {words}: `dino` {digest}\n")
    assert not _announced("dino", "0" * 12, f"### Numbers\n\n- {words}: `dino` {digest}\n")
    assert not _announced("ibot", digest, f"### Numbers\n\n- {words}: `dino` {digest}\n")
    assert not _announced("dino", digest, f"### Added\n\n- {words}: `dino` {digest}\n### Numbers\n\n- other\n")
    assert not _announced("dino", digest, f"### Numbers\n\n- `dino` {digest}, `ibot` {digest}\n")
