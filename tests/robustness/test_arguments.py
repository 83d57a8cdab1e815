# SPDX-License-Identifier: Apache-2.0
"""Command lines by chance, in short form; the full one: `python -m tests.robustness.arguments`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.arguments import harness, tried


def test_a_command_line_ends_with_a_code_and_a_message(tmp_path: Path) -> None:
    found = harness(tmp_path, 150, seed=5)
    assert not found.broken
    assert set(found.codes) == {"0", "2"}
    assert len(found.commands) > 8


def test_the_harness_notices_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("rekindle.cli.catalogue.run", fail)
    with pytest.raises(AssertionError, match="fault of ours"):
        tried(["list", "methods"])
