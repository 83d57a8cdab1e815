# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.core.errors import RekindleError, unknown_name
from rekindle.core.files import write_atomically


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    text = str(unknown_name("method", "glaer", ["dino", "glare"]))
    assert "did you mean 'glare'" in text and "dino, glare" in text


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda stream: stream.write(b"old"))

    def fail(stream: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RekindleError, match="no space left on the disk"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    def fail(stream: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(RekindleError, match="not writable"):
        write_atomically(tmp_path / "file", fail)
