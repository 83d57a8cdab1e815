# SPDX-License-Identifier: Apache-2.0
"""Requirements are pinned by hash and name no host; the audit tells what it found and what it could not look up."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dev.txt", "uv.txt"])
def test_every_requirement_is_pinned_by_hash_and_names_no_host(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n", "", text).strip())
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    assert "://" not in text


def test_a_known_vulnerability_fails_the_audit(audit: ModuleType) -> None:
    packages = [
        {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    code, told = audit.verdict({"dependencies": packages})
    assert code == 1
    assert told.splitlines() == [
        "2 of 3 packages looked up, 1 known vulnerabilities",
        "a 1: X-1, mended in 2",
        "not looked up: c",
    ]


def test_nothing_known_passes_and_nothing_asked_is_said(audit: ModuleType) -> None:
    assert audit.verdict({"dependencies": [{"name": "b", "version": "1", "vulns": []}]})[0] == 0
    code, told = audit.verdict({"dependencies": [{"name": "c", "skip_reason": "not found"}]})
    assert code == 0 and told.startswith("skipped")
