# SPDX-License-Identifier: Apache-2.0
"""The harness over damaged files, in its short form; the full one: `python -m tests.robustness.mutants`."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rekindle.core.files import printable
from rekindle.data.decoding import UnreadableImage, read_image
from rekindle.data.images import find_images
from tests.robustness.mutants import BATCH, bombs, harness, write_mutants


def test_a_run_over_mutants_lists_each_bad_one_with_its_reason_and_ends(tmp_path: Path) -> None:
    found = harness(tmp_path, 60, seed=1)
    assert found.is_clean, found
    assert found.skipped > 20
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert "pipe.png\ta pipe, socket, folder or device, not a file\n" in listed
    assert "broken, not utf-8 \\udcff.png\t" in listed


@pytest.mark.parametrize("number", range(len(bombs())))
def test_a_bomb_is_refused_from_its_header_or_by_its_text(number: int) -> None:
    with pytest.raises(UnreadableImage):
        read_image(bombs()[number])


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    reasons: list[str] = []

    def read() -> None:
        try:
            read_image(str(tmp_path / "pipe.png"))
        except UnreadableImage as error:
            reasons.append(error.reason)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert reasons == ["a pipe, socket, folder or device, not a file"]


def test_every_mutant_is_in_the_source_that_is_trained_on(tmp_path: Path) -> None:
    written = write_mutants(tmp_path / "mutants", 33, seed=0)
    assert len(find_images(tmp_path / "mutants")) == sum(written.values()) - 1  # the circle of links is no file
    assert len(find_images(tmp_path / "mutants")) % BATCH == 0


def test_names_become_one_printable_line() -> None:
    assert printable("a\nb\tc\x1b[31m\udcff é") == "a\\nb\\tc\\x1b[31m\\udcff é"
