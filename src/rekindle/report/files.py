# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report as files for papers: maps as PNG, curves and intervals as SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rekindle.core.files import write_atomically
from rekindle.drawing.pictures import Bytes, enlarged, write_grid, write_picture
from rekindle.measuring.looking import marked
from rekindle.report.page import Card, Overview, Report
from rekindle.report.panels import Panel
from rekindle.report.rendering import intervals_svg, panel_svg
from rekindle.report.verdicts import VerdictRow


def write_report_pictures(report: Report, folder: Path) -> list[Path]:
    """Write every picture of a report of one run, and return the files.

    `images/<image>-<map>-base.png` and `-adapted.png` are single maps of the image's size, `<map>.png` all of them in labelled
    rows (where the images are of one size); of the tokens also `tokens-1.png` to `-3.png`, one component each in grey, for
    readers who cannot tell the colours apart. `curve-*.svg`, `intervals*.svg` and what was drawn in training.
    """
    files = [*_curves(report.curves, folder), *_intervals(report.rows, folder)]
    for number, card in enumerate(report.cards):
        files += _single(card, folder / "images", f"{number:02}-{_slug(card.name)}")
    if report.cards and len({card.image.shape for card in report.cards}) == 1:
        files += _rows(report.cards, folder)
    for number, figure in enumerate([*report.views, *report.drawn, *report.predicted]):
        files.append(folder / f"figure-{number}-{_slug(figure.title)}.png")
        write_picture(files[-1], figure.pixels)
    return files


def write_overview_pictures(overview: Overview, folder: Path) -> list[Path]:
    """Write curves and intervals of several runs."""
    rows = [row for run in overview.runs for row in run.rows]
    return [*_curves(overview.curves, folder), *_intervals(rows, folder)]


def _curves(curves: Mapping[str, Sequence[Panel]], folder: Path) -> list[Path]:
    return [_write(folder / f"curve-{_slug(p.title)}.svg", panel_svg(p)) for own in curves.values() for p in own]


def _intervals(rows: Sequence[VerdictRow], folder: Path) -> list[Path]:
    texts = intervals_svg(rows) if rows else []
    return [_write(folder / f"intervals{f'-{n}' if n else ''}.svg", text) for n, text in enumerate(texts)]


def _single(card: Card, folder: Path, stem: str) -> list[Path]:
    size = card.image.shape[:2]
    pictures: dict[str, Bytes] = {"image": card.image, **{_slug(name): p for name, p in card.extra.items()}}
    for pair in card.pairs:
        for side, pixels in (("base", pair.base), ("adapted", pair.adapted)):
            pictures[f"{pair.kind}-{side}"] = _sized(pixels, size)
    pictures["place"] = marked(card.image, card.place)
    files = [folder / f"{stem}-{name}.png" for name in pictures]
    for path, pixels in zip(files, pictures.values(), strict=True):
        write_picture(path, pixels)
    return files


def _rows(cards: Sequence[Card], folder: Path) -> list[Path]:
    images, size = np.stack([card.image for card in cards]), cards[0].image.shape[:2]
    files = []
    for index, pair in enumerate(cards[0].pairs):
        base, adapted = (
            np.stack([_sized(p, size) for p in side])
            for side in zip(*((card.pairs[index].base, card.pairs[index].adapted) for card in cards), strict=True)
        )
        files.append(folder / f"{pair.kind}.png")
        write_grid(files[-1], {"image": images, "base": base, "adapted": adapted})
        if pair.kind == "tokens":
            for channel in range(3):
                grey = {
                    name: np.repeat(side[..., channel, None], 3, -1)
                    for name, side in (("base", base), ("adapted", adapted))
                }
                files.append(folder / f"tokens-{channel + 1}.png")
                write_grid(files[-1], {"image": images, **grey})
    return files


def _sized(pixels: Bytes, size: tuple[int, ...]) -> Bytes:
    return np.asarray(enlarged(pixels[None], size)[0], dtype=np.uint8)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def _write(path: Path, text: str) -> Path:
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return path
