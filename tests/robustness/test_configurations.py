# SPDX-License-Identifier: Apache-2.0
"""Legal configurations by chance, in short form; the full one: `python -m tests.robustness.configurations`."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.configurations import harness


def test_a_legal_configuration_trains_or_is_refused_with_the_name_of_an_option(tmp_path: Path) -> None:
    found = harness(tmp_path, 40, seed=7)
    assert not found.broken
    assert found.trained > 10
    assert found.refused > 5
