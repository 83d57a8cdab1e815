# SPDX-License-Identifier: Apache-2.0
"""The run's numbers: one JSON object a line, and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rekindle.core.files import storage_error, write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Pictures: TypeAlias = Mapping[str, NDArray[np.uint8]]
"""Name -> bytes [H, W, 3]."""


class MetricsLog:
    """Appends to metrics.jsonl; lines of steps that a resumed run will do again are taken out first.

    What a step computed stands at the top level of its line, and is the same in a repeated run; what depends on the clock
    stands under "speed".
    """

    def __init__(self, path: Path, *, start_step: int, tensorboard: bool) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start_step]
        write_atomically(path, lambda stream: stream.write("".join(f"{line}\n" for line in kept).encode()))
        self._path, self._stream = path, path.open("a", encoding="utf-8")
        self._start_step, self._wants_board = start_step, tensorboard

    def write(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Write one line for `step` (steps done)."""
        try:
            self._stream.write(json.dumps({"step": step, **values, "speed": dict(speed)}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise storage_error(self._path, error) from error
        if self._wants_board:
            for name, value in {**values, **{f"speed/{k}": v for k, v in speed.items()}}.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Have the lines on the disk: a checkpoint must not outlive the lines of its steps when the power goes."""
        os.fsync(self._stream.fileno())

    def show(self, step: int, pictures: Pictures) -> None:
        """Put pictures into TensorBoard; nothing without it."""
        if self._wants_board:
            for name, pixels in pictures.items():
                self._board.add_image(f"pictures/{name}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close; a line that a full disk refused is given up, as its error has been told."""
        with contextlib.suppress(OSError):
            self._stream.close()
        if "_board" in self.__dict__:
            self._board.close()

    @cached_property
    def _board(self) -> SummaryWriter:
        """Loaded with the first thing to show, so that no first step waits for it."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=self._start_step + 1)


SCHEDULES = {"step", "speed", "lr", "weight_decay", "momentum", "teacher_temperature", "epoch"}


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of a log that can be read, in order, and how many cannot (a crash leaves half a line; NaN is read)."""
    if not path.is_file():
        return [], 0
    lines, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            content["step"] = int(content["step"])
        except (ValueError, KeyError, TypeError):
            broken += 1
            continue
        lines.append(content)
    return lines, broken


def read_curves(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Read the steps and what was measured at each of them; schedules, and what some lines lack, are left out."""
    lines = [json.loads(line) for line in _whole_lines(path)]
    names = [name for name in (lines[0] if lines else {}) if name not in SCHEDULES]
    everywhere = [name for name in names if all(name in line for line in lines)]
    return [line["step"] for line in lines], {name: [line[name] for line in lines] for name in everywhere}


def _whole_lines(path: Path) -> list[str]:
    """Lines that parse; a crash can leave half a line at the end."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        lines.append(line)
    return lines
