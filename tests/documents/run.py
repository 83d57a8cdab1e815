# SPDX-License-Identifier: Apache-2.0
"""Run what documents show: `python -m tests.documents.run [FILE.md...]`; `make docs` does it for all of them.

- `python`: run, the blocks of a document one after the other, with `standins.py` for the reader's own images and models;
  `pycon`: the same, and its output has to be the printed one.
- `sh`: every call is read and checked by the command itself (`commands.py`); those of `RUN` are run as well.
- `yaml`: a grid, with the options of all its cells, or a run file. `json`: parsed.
- Commands and options that are named inside a sentence have to exist.
- Languages of `fences.SKIPPED` are not run. Any other one, or none, is a fault.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.documents.commands import calls_of, check_call, check_span, run_command
from tests.documents.fences import SKIPPED, Block, Fault, blocks_of_code, spans_of_code
from tests.documents.reading import DOCUMENTS, ROOT
from tests.documents.standins import Stage, small_calls, small_command

RUN = ("README.md", "docs/app.md", "docs/report.md")
"""Documents whose commands are run, and not only read and checked by their front ends: what stands in is enough for these."""
NOT_RUN = {
    "app": "serves until it is stopped",
    "bench": "takes minutes, and needs peers",
    "demo": "takes minutes; `make demo`",
}
"""Commands that are not run even there."""
HISTORY = ("CHANGELOG.md",)
"""Documents that name what was; the code of their sentences is not looked up."""


class Runner:
    """Runs documents and counts what it did.

    Attributes:
        faults: what does not work, each with its place.
        counts: what was done, in words -> how often.
    """

    def __init__(self, root: Path) -> None:
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._stage = Stage(root)

    def document(self, path: Path) -> None:
        """Run all blocks of a document and look up what its sentences name."""
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        try:
            blocks = blocks_of_code(path)
        except Fault as fault:
            self.faults.append(str(fault))
            return
        self._python([block for block in blocks if block.language in ("python", "pycon")])
        others: dict[str, Callable[[Block], object]] = {
            "sh": lambda block: self._shell(block, runs=name in RUN),
            "yaml": self._yaml,
            "json": lambda block: json.loads(block.text),
        }
        for block in blocks:
            if block.language in others:
                self._guarded(block, others[block.language])
                self.counts[f"{block.language} blocks"] += 1
            elif block.language in SKIPPED:
                self.counts[f"{block.language} blocks skipped"] += 1
            elif block.language not in ("python", "pycon"):
                self.faults.append(f"{block.place}: {block.language} is not known here; see SKIPPED in fences.py")
        for span in spans_of_code(path) if name not in HISTORY else ():
            self._guarded(span, self._span)

    def docstring(self, path: Path) -> None:
        """Run the examples of a module's docstring as a block."""
        source = path.read_text(encoding="utf-8")
        text = source[: source.index('"""', source.index('"""') + 3)]
        self._python([Block(path, 0, "pycon", text)])

    def _python(self, blocks: Sequence[Block]) -> None:
        """Run blocks in one folder, with names in common."""
        if not blocks:
            return
        names: dict[str, Any] = {"__name__": "__main__"}
        folder = self._stage.folder("".join(block.text for block in blocks))
        with contextlib.chdir(folder), self._stage.hub(), small_calls():
            for block in blocks:
                self._guarded(block, lambda block: _run_python(block, names))
                self.counts[f"{block.language} blocks run"] += 1

    def _shell(self, block: Block, *, runs: bool) -> None:
        folder = self._stage.folder(block.text if runs else "")
        calls = calls_of(block, folder)
        with contextlib.chdir(folder):
            for call in calls:
                is_ours = call[0] == "rekindle"
                try:
                    check_call(call)
                    if runs and is_ours and call[1] not in NOT_RUN:
                        with self._stage.hub():
                            run_command(small_command(call[1:]))
                        self.counts["commands run"] += 1
                    else:
                        self.counts["commands checked" if is_ours else f"{call[0]} calls checked"] += 1
                except Fault as fault:
                    self.faults.append(f"{block.place}: {' '.join(call)}\n    {fault}")

    def _yaml(self, block: Block) -> None:
        from rekindle.core.errors import RekindleError
        from rekindle.matrix.cells import cell_tree, keys
        from rekindle.matrix.grid import check_grid
        from rekindle.pretraining.options import resolve

        tree = yaml.safe_load(block.text)
        try:
            if "starts" not in tree:
                resolve(tree, {})
                return
            grid = check_grid({"out": "out", **tree})
            for key in keys(grid):
                resolve(cell_tree(grid, key), {})
        except RekindleError as error:
            raise Fault(str(error)) from None

    def _span(self, span: Block) -> None:
        self.counts["commands and options of sentences looked up"] += check_span(span.text)

    def _guarded(self, block: Block, work: Callable[[Block], object]) -> None:
        try:
            work(block)
        except Fault as fault:
            self.faults.append(f"{block.place}: {block.text if not block.language else ''} {fault}")
        except Exception:
            self.faults.append(f"{block.place}:\n{traceback.format_exc()}")


def _run_python(block: Block, names: dict[str, Any]) -> None:
    said = io.StringIO()
    if block.language == "python":
        code = compile("\n" * block.line + block.text, str(block.path), "exec")
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            exec(code, names)
        return
    test = doctest.DocTestParser().get_doctest(block.text, names, block.place, str(block.path), block.line)
    if any(doctest.SKIP in example.options for example in test.examples):
        raise Fault("an example is skipped; let it run, or show it as text")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with contextlib.redirect_stderr(said):
        runner.run(test, out=said.write, clear_globs=False)
    names.update(test.globs)
    if runner.failures:
        raise Fault(said.getvalue().strip())


def main(paths: Sequence[str]) -> int:
    """Run documents, all of them by default; print what was done and what failed, and return the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rekindle-documents-") as folder:
        runner = Runner(Path(folder))
        for path in map(Path, paths) if paths else DOCUMENTS:
            runner.document(path.resolve())
        if not paths:
            runner.docstring(ROOT / "src" / "rekindle" / "__init__.py")
    for fault in runner.faults:
        print(fault, file=sys.stderr)
    for what, count in sorted(runner.counts.items()):
        print(f"{what}: {count}")
    print(f"{len(runner.faults)} faults, {time.monotonic() - began:.0f} s")
    return 1 if runner.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
