# SPDX-License-Identifier: Apache-2.0
"""The page: what stands where, and what each control does. It works by keyboard and with a screen reader, in light and dark."""

from __future__ import annotations

import html
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from rekindle.app.workbench import (
    Opened,
    ShownModel,
    Workbench,
    answer,
    full_mask,
    head_pictures,
    token_pictures,
    with_prompts,
)
from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.images import SUFFIXES
from rekindle.drawing.pictures import Bytes, write_arrays
from rekindle.prompting.answer import Prompt
from rekindle.prompting.job import write_mask
from rekindle.prompting.options import THRESHOLD, Edges
from rekindle.report.embedding import data_uri

TITLE = "Rekindle: click a place, see what is alike"
ADD, SUBTRACT = "add (+)", "subtract (−)"
BOTH = "side by side"
EDGES: dict[str, Edges] = {"patches": "patches", "smooth": "smooth"}
MOST_FILES = 200
WELCOME = "No image yet. Choose one; it stays on this machine."


@dataclass(frozen=True)
class Board:
    """What one visitor has open, and the places chosen in it."""

    opened: Opened | None = None
    prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Controls:
    """How to answer: threshold, edges, and which side is shown."""

    threshold: float
    edges: str
    shown: str


class PageFiles:
    """Files that the page is about to fetch; Gradio copies each when it is shown, so only the latest stay here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: deque[Path] = deque()

    def new(self, name: str) -> Path:
        """Return a path of this name in a folder of its own: two visitors may open files of one name."""
        path = Path(tempfile.mkdtemp(dir=self._folder)) / name
        self._kept.append(path)
        while len(self._kept) > MOST_FILES:
            shutil.rmtree(self._kept.popleft().parent)
        return path

    def photo(self, pixels: Bytes) -> str:
        """Write a picture [H, W, 3] as a JPEG that shows every patch's colour (a tenth of the time that a PNG takes)."""
        path = self.new("picture.jpg")
        Image.fromarray(pixels).save(path, quality=92, subsampling=0)
        return str(path)

    def exact(self, pixels: Bytes) -> str:
        """Write a picture [H, W, 3] as a PNG."""
        path = self.new("picture.png")
        Image.fromarray(pixels).save(path, compress_level=1)
        return str(path)


class PageLogic:
    """What the controls do: each method takes a board and values, and returns updates of the page, in the order of `outputs`.

    A request that cannot be met becomes a message in the page, and the rest of it stays as it was.

    Args:
        bench: models and images.
        files: where pictures and what can be downloaded are written.

    """

    def __init__(self, bench: Workbench, files: PageFiles) -> None:
        self.bench = bench
        self._files = files

    def open(self, path: str | None, board: Board, *values: Any) -> list[Any]:
        """Open an upload; nothing to choose means that it was taken away."""
        if path is None:
            return self._all(Board(), Controls(*values), said(WELCOME))
        try:
            opened = self.bench.open(path)
        except RekindleError as error:
            return self._all(board, Controls(*values), said(f"{error}.", is_bad=True))
        return self._all(Board(opened), Controls(*values), said(self._opening(opened)))

    def place(self, board: Board, kind: str, row: float | None, column: float | None, *values: Any) -> list[Any]:
        """Add or subtract the place in the number fields."""
        if board.opened is None:
            return self._all(board, Controls(*values), said("Open an image first.", is_bad=True))
        if row is None or column is None or row != int(row) or column != int(column):
            return self._all(board, Controls(*values), said("Row and column must be whole numbers.", is_bad=True))
        prompt = Prompt(int(row), int(column), kind == ADD)
        return self._with(board, (*board.prompts, prompt), Controls(*values))

    def click(self, board: Board, kind: str, controls: Sequence[Any], at: tuple[int, int]) -> list[Any]:
        """Add or subtract the place that was clicked, (x, y) in the picture as the page shows it."""
        if board.opened is None:
            return self._all(board, Controls(*controls), said("Open an image first.", is_bad=True))
        (height, width), shown = board.opened.size, board.opened.picture.shape
        # the browser rounds: the last half pixel of the picture may be reported as one beyond it
        row, column = (
            min(n, s - 1) * full // s for n, s, full in ((at[1], shown[0], height), (at[0], shown[1], width))
        )
        return self._with(board, (*board.prompts, Prompt(row, column, kind == ADD)), Controls(*controls))

    def undo(self, board: Board, *values: Any) -> list[Any]:
        """Take the last place away; a subtracted one does not stay alone."""
        left = board.prompts[:-1]
        return self._with(board, left if any(p.is_added for p in left) else (), Controls(*values))

    def clear(self, board: Board, *values: Any) -> list[Any]:
        """Take all places away."""
        return self._with(board, (), Controls(*values))

    def again(self, board: Board, *values: Any) -> list[Any]:
        """Answer the same places with other controls."""
        return self._with(board, board.prompts, Controls(*values))

    def _with(self, board: Board, prompts: tuple[Prompt, ...], controls: Controls) -> list[Any]:
        """The page with these places, or with those before and a message."""
        start = time.perf_counter()
        try:
            updates = self._all(replace(board, prompts=prompts), controls, "")
        except RequestError as error:
            return self._all(board, controls, said(f"{str(error)[0].upper()}{str(error)[1:]}.", is_bad=True))
        if board.opened is not None:
            updates[-1] = said(self._places(board.opened, prompts, controls, time.perf_counter() - start))
        return updates

    def _all(self, board: Board, controls: Controls, message: str) -> list[Any]:
        """Board, picture, per side its column, two pictures, mask and command, then the message."""
        opened = board.opened
        answers = None
        if opened is not None and board.prompts:
            answers = answer(opened, board.prompts, controls.threshold, EDGES[controls.edges])
        picture = None if opened is None else self._files.photo(with_prompts(opened, board.prompts))
        updates: list[Any] = [board, gr.update(value=picture)]
        for number, side in enumerate(self.bench.sides):
            updates.append(gr.update(visible=controls.shown in (BOTH, side.title)))
            if opened is None or answers is None:
                updates += [gr.update(value=None)] * 2 + [gr.update(value=None, interactive=False), ""]
                continue
            shown, edges = answers[number], EDGES[controls.edges]
            path = self._files.new(f"{Path(opened.name).stem[:60]}-{side.title}-mask.png")
            write_mask(path, full_mask(opened, shown, controls.threshold, edges))
            updates += [
                gr.update(value=self._files.photo(shown.similarity)),
                gr.update(value=self._files.photo(shown.contour)),
                gr.update(value=str(path), interactive=True),
                self.bench.command(opened, board.prompts, controls.threshold, edges, side),
            ]
        return [*updates, message]

    def maps(self, board: Board) -> list[Any]:
        """Per side its tokens as colours and its heads, then the file of features."""
        opened, sides = board.opened, self.bench.sides
        if opened is None:
            return [*([gr.update(value=None), ""] * len(sides)), gr.update(value=None, interactive=False)]
        updates: list[Any] = []
        for side, colours, heads in zip(sides, token_pictures(opened), head_pictures(opened), strict=True):
            updates += [gr.update(value=self._files.exact(colours)), _head_figures(side.title, heads)]
        path = self._files.new(f"{Path(opened.name).stem[:60]}-features.npz")
        arrays: dict[str, Any] = {}
        for side, seen in zip(sides, opened.looks, strict=True):
            arrays[f"{side.title}_patches"] = seen.patches
            arrays |= {} if seen.heads is None else {f"{side.title}_attention": seen.heads}
        write_arrays(path, **arrays)
        return [*updates, gr.update(value=str(path), interactive=True)]

    def _opening(self, opened: Opened) -> str:
        (height, width), grid = opened.size, opened.looks[0].patches.shape
        return (
            f"{opened.name}: {height} x {width} px, {grid[0]} x {grid[1]} patches, looked at in {opened.seconds:.2f} s. "
            "Now click a place in it, or give its row and column."
        )

    def _places(self, opened: Opened, prompts: Sequence[Prompt], controls: Controls, seconds: float) -> str:
        if not prompts:
            return f"{opened.name}: no place chosen. Click one, or give its row and column."
        listed = ", ".join(f"{'+' if p.is_added else '−'} ({p.row}, {p.column})" for p in prompts)
        return f"Places (row, column): {listed}. Answered in {seconds:.2f} s."


def _head_figures(title: str, heads: Sequence[Bytes]) -> str:
    """Figures of one side's heads."""
    if not heads:
        return f"<p>{title}: this model has no class token.</p>"
    figures = (
        f'<figure><img alt="" src="{data_uri(picture, "photo")}"><figcaption>{title}, head {number}</figcaption></figure>'
        for number, picture in enumerate(heads)
    )
    return f'<div class="heads">{"".join(figures)}</div>'


def said(text: str, *, is_bad: bool = False) -> str:
    """Return the message line; a screen reader speaks it, at once if something went wrong."""
    role, kind = ("alert", "bad") if is_bad else ("status", "good")
    return f'<p role="{role}" class="said {kind}">{html.escape(text)}</p>'


def build_page(bench: Workbench, folder: Path, *, max_upload_mb: float) -> gr.Blocks:
    """Lay the page out and connect it."""
    logic = PageLogic(bench, PageFiles(folder))
    sides = bench.sides
    choices = [BOTH, *(side.title for side in sides)] if len(sides) > 1 else [sides[0].title]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
        board = gr.State(Board())
        gr.HTML(_head(sides, bench.size_px))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                upload = gr.File(
                    label=f"Image file, at most {max_upload_mb:g} MB",
                    file_types=sorted(SUFFIXES),
                    elem_id="upload",
                    height=120,
                )
                message = gr.HTML(said(WELCOME), elem_id="message")
                picture = gr.Image(
                    label="Your image: click a place in it",
                    interactive=False,
                    buttons=[],
                    elem_id="picture",
                    alt_text="The image that was opened, with the chosen places",
                )
                kind = gr.Radio([ADD, SUBTRACT], value=ADD, label="A place is", info="Look for it, or leave it out.")
                with gr.Row():
                    row = gr.Number(label="Row", info="From 0 at the top.", min_width=100)
                    column = gr.Number(label="Column", info="From 0 at the left.", min_width=100)
                place = gr.Button("Choose this row and column", variant="primary", size="md")
                with gr.Row():
                    undo = gr.Button("Undo last place", size="md", min_width=100)
                    clear = gr.Button("Clear places", size="md", min_width=100)
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    shown = gr.Radio(
                        choices,
                        value=choices[0],
                        label="Model",
                        info="Which one answers.",
                        visible=len(sides) > 1,
                        min_width=220,
                    )
                    threshold = gr.Slider(
                        0.0,
                        0.95,
                        value=THRESHOLD,
                        step=0.01,
                        label="Threshold",
                        info="Above it lies the mask.",
                        min_width=220,
                    )
                    edges = gr.Radio(
                        [*EDGES], value="patches", label="Edges", info="Of patches, or interpolated.", min_width=180
                    )
                with gr.Tabs():
                    with gr.Tab("Mask"):
                        answers = _answers(sides)
                    with gr.Tab("Tokens (PCA)"):
                        gr.HTML(f"<p>{_tokens_note(sides)}</p>")
                        with gr.Row():
                            tokens = [_picture(f"{s.title}: patch tokens", f"tokens-{s.title}") for s in sides]
                    with gr.Tab("Attention"):
                        gr.HTML(
                            "<p>Attention of the class token in the last block, head by head, on one scale: dark is none. A "
                            "model without a class token has none to show.</p>"
                        )
                        heads = [gr.HTML(elem_id=f"heads-{s.title}") for s in sides]
                features = gr.DownloadButton(
                    "Download features (.npz)", interactive=False, elem_id="features", size="md"
                )
        controls = [threshold, edges, shown]
        outputs = [board, picture, *answers, message]
        map_outputs = [c for pair in zip(tokens, heads, strict=True) for c in pair] + [features]
        quiet: dict[str, Any] = {"outputs": outputs, "api_visibility": "private", "show_progress": "hidden"}
        looked: dict[str, Any] = {"outputs": map_outputs, "api_visibility": "private", "show_progress": "hidden"}
        for event in (upload.upload, upload.clear):
            event(logic.open, [upload, board, *controls], **(quiet | {"show_progress": "minimal"})).then(
                logic.maps, [board], **looked
            )
        place.click(logic.place, [board, kind, row, column, *controls], **quiet)
        for field in (row, column):
            field.submit(logic.place, [board, kind, row, column, *controls], **quiet)
        picture.select(_on_click(logic), [board, kind, *controls], trigger_mode="multiple", **quiet)  # none is lost
        undo.click(logic.undo, [board, *controls], **quiet)
        clear.click(logic.clear, [board, *controls], **quiet)
        for control in controls:
            control.change(logic.again, [board, *controls], trigger_mode="always_last", **quiet)
    assert isinstance(page, gr.Blocks)
    return page


def _on_click(logic: PageLogic) -> Callable[..., list[Any]]:
    def click(board: Board, kind: str, threshold: float, edges: str, shown: str, event: gr.SelectData) -> list[Any]:
        x, y = event.index
        return logic.click(board, kind, (threshold, edges, shown), (int(x), int(y)))

    return click


def _answers(sides: Sequence[ShownModel]) -> list[Any]:
    """Per side its column, its two pictures, the mask to download and the command."""
    found: list[Any] = []
    for side in sides:
        with gr.Column() as block:
            with gr.Row():
                similarity = _picture(f"{side.title}: similarity, dark 0 to pale 1", f"similarity-{side.title}")
                contour = _picture(f"{side.title}: mask and contour", f"contour-{side.title}")
            with gr.Row():
                mask = gr.DownloadButton(
                    f"Download mask of {side.title} (.png)",
                    interactive=False,
                    elem_id=f"mask-{side.title}",
                    size="md",
                    scale=1,
                    min_width=220,
                )
                command = gr.Textbox(
                    label=f"{side.title}: the same mask from the command line",
                    interactive=False,
                    lines=1,
                    elem_id=f"command-{side.title}",
                    scale=3,
                    min_width=220,
                )
        found += [block, similarity, contour, mask, command]
    return found


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(label=label, interactive=False, buttons=[], elem_id=name, alt_text=label)


def _head(sides: Sequence[ShownModel], size_px: int) -> str:
    models = "; ".join(f"{side.title}: <code>{html.escape(side.arguments[0])}</code>" for side in sides)
    return (
        f"<h1>{html.escape(TITLE)}</h1><p>{models}. Images are looked at with a short side of about {size_px} px. "
        "Everything is computed on the machine that runs <code>rekindle app</code>.</p>"
    )


def _tokens_note(sides: Sequence[ShownModel]) -> str:
    told = "Three principal components of the patch tokens as red, green and blue"
    if len(sides) == 1:
        return f"{told}."
    is_joint = len({side.extractor.width for side in sides}) == 1
    return told + (
        ", fitted to both models together: a colour means the same in both pictures."
        if is_joint
        else "; the models have tokens of different width, so they are fitted apart, and colours cannot be compared."
    )
