# SPDX-License-Identifier: Apache-2.0
"""Commands of documents: bash says what a block calls, and each command's own front end whether it may be called so.

A block is run by bash where `rekindle`, `python`, `pip` and `make` only write down their arguments: variables, loops and
here-documents mean what they mean. A command is then called as its user calls it, and stops where it would first touch images,
models or files (`TOUCHES`): by then it has read and checked its options.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

from tests.documents.fences import Block, Fault
from tests.documents.reading import ROOT

TOUCHES: dict[str, tuple[str, ...]] = {
    "demo": ("rekindle.demo.story:run_demo",),
    "pretrain": ("rekindle.pretraining.run:chosen_images",),
    "plan": ("rekindle.pretraining.run:chosen_images",),
    "config": ("rekindle.data.images:chosen_images",),
    "evaluate": ("rekindle.measuring.evaluate:open_labelled",),
    "compare": (
        "rekindle.measuring.compare:open_labelled",
        "rekindle.matrix.run:run_matrix",
        "rekindle.matrix.run:survey",
        "rekindle.matrix.rows:compare_rows",
        "rekindle.evaluation.scores.relative:relative_table",
    ),
    "study": (
        "rekindle.matrix.study:run_study",
        "rekindle.matrix.run:survey",
        "rekindle.calibration.run:run_calibration",
    ),
    "report": ("rekindle.report.job:run_report",),
    "extract": ("rekindle.measuring.extract:is_film",),
    "prompt": ("rekindle.prompting.job:read_image",),
    "app": ("rekindle.app.server:run_app",),
    "export": ("rekindle.exporting.job:run_export",),
    "check": ("rekindle.pretraining.check:check",),
    "bench": ("rekindle.bench.running:run_bench",),
    "list": (),
}
"""Command -> what it calls first when its options are read and checked; without any, it is cheap and runs to its end."""
RECORDED = ("rekindle", "python", "pip", "make")
TOOLS = ("cat",)
"""What else a block may call."""
_RECORD = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\1\\0'; } >> "$RECORDED_CALLS"
"""


class Reached(BaseException):
    """A command has read its options and would begin to work."""


def calls_of(block: Block, folder: Path) -> list[list[str]]:
    """What a block of shell calls, in this folder, in order. Raises Fault where bash does."""
    shims, record = folder / ".venv" / "bin", folder / ".calls"
    shims.mkdir(parents=True, exist_ok=True)
    for name in RECORDED:
        (shims / name).write_text(_RECORD)
        (shims / name).chmod(0o755)
    for name in TOOLS:
        place = shutil.which(name)
        if place is not None and not (shims / name).exists():
            (shims / name).symlink_to(place)
    record.write_bytes(b"")
    shell = shutil.which("bash") or "bash"
    done = subprocess.run(
        [shell, "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={"PATH": str(shims), "RECORDED_CALLS": str(record.resolve()), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Fault(f"{block.place}: bash: {done.stderr.strip()}")
    calls = record.read_text(encoding="utf-8").split("\x01\0")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def check_call(call: Sequence[str]) -> None:
    """Check one call. Raises Fault that says what is wrong with it."""
    program, *arguments = call
    {"rekindle": check_command, "python": check_script, "pip": check_install, "make": check_make}[program](arguments)


def check_command(arguments: Sequence[str]) -> None:
    """See that a command takes its arguments: it reads and checks them, and stops before it works."""
    places = TOUCHES.get(arguments[0] if arguments else "", ())
    with contextlib.ExitStack() as stack:
        if arguments[:1] == ["bench"]:  # whether a peer is installed here says nothing about the document
            stack.enter_context(patch("rekindle.bench.table.importlib.util.find_spec", lambda name: name))
        for place in places:
            module, _, name = place.partition(":")
            stack.enter_context(patch.object(importlib.import_module(module), name, _reached))
        has_reached = run_command(arguments)
    if places and not has_reached and arguments[0] != "config" and not {"-h", "--help"} & {*arguments}:
        raise Fault(f"it never came to {', '.join(places)}: mend TOUCHES in tests/documents/commands.py")


def run_command(arguments: Sequence[str]) -> bool:
    """Run a command in this process, in the folder that this process is in. Raises Fault if it fails.

    Returns: whether it was stopped where it would have begun to work.
    """
    from rekindle.cli import main

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
    except Reached:
        return True
    if code:
        raise Fault(said.getvalue().strip())
    return False


def _reached(*arguments: object, **named: object) -> NoReturn:
    raise Reached


def check_script(arguments: Sequence[str]) -> None:
    """See that a script, or a module of ours with -m, takes its arguments; all of them read theirs with argparse."""
    if arguments[:2] == ["-m", "rekindle"]:
        return check_command(arguments[2:])
    if "..." in arguments:
        raise Fault("... is no argument; write out what stands for it")
    is_module = arguments[0] == "-m"
    name, *own = arguments[1:] if is_module else arguments
    source = ROOT / (Path(*name.split(".")).with_suffix(".py") if is_module else name)
    if not source.is_file():
        raise Fault(f"there is no {name}")
    if "parse_args" not in source.read_text():
        if own:
            raise Fault(f"{name} takes no arguments")
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object, **named: object) -> NoReturn:
        parse(parser, own)
        raise Reached

    said = io.StringIO()
    with patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop), patch.object(sys, "argv", [name, *own]):
        try:
            with contextlib.redirect_stderr(said):
                runpy.run_path(str(source), run_name="__main__")
        except Reached:
            return
        except SystemExit:
            raise Fault(said.getvalue().strip()) from None
    raise Fault(f"{name} did not read its arguments")


def check_install(arguments: Sequence[str]) -> None:
    """See that pip installs this project, with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in arguments[1:]:
        found = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement)
        if arguments[0] != "install" or found is None or found[1] != project["name"]:
            raise Fault(f"pip {' '.join(arguments)}: only `pip install {project['name']}[...]` is known here")
        for extra in (found[2] or "").split(","):
            if extra and extra not in project["optional-dependencies"]:
                raise Fault(f"there is no extra {extra}")


def check_make(arguments: Sequence[str]) -> None:
    """See that the targets are there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for target in arguments:
        if "=" not in target and target not in targets:
            raise Fault(f"there is no target {target}")


@cache
def options_of(command: str) -> frozenset[str]:
    """Every option that a command's help names, those of all methods and protocols among them."""
    from rekindle.cli import main
    from rekindle.evaluation import PROTOCOLS
    from rekindle.methods import METHODS

    more = options_of("pretrain") if command in ("plan", "config") else frozenset()
    asked: dict[str, list[list[str]]] = {
        "pretrain": [["--method", method] for method in METHODS],
        "evaluate": [["--protocol", protocol] for protocol in PROTOCOLS],
        "compare": [["--protocol", *PROTOCOLS]],
        "study": [["--protocol", *PROTOCOLS], ["calibration"]],
    }
    said = io.StringIO()
    with contextlib.redirect_stdout(said), patch.dict(os.environ, {"COLUMNS": "500"}):
        for ask in asked.get(command, [[]]):
            main([command, *ask, "--help"])
    return more | set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", said.getvalue())) | {"--debug", "--help", "--json"}


def check_span(text: str) -> bool:
    """Check the code of a sentence: a command's name and its options' names, or options alone. Values are not read.

    Returns: whether it is one of these. Raises Fault.
    """
    from rekindle.cli import COMMANDS

    words = text.removeprefix(".venv/bin/").split()
    options = [re.split(r"[=\[]", word)[0].replace("_", "-") for word in words if re.match(r"--[a-z]", word)]
    if words[:1] == ["rekindle"] and len(words) > 1 and not words[1].startswith("-"):
        if words[1] not in COMMANDS and words[1] != "COMMAND":
            raise Fault(f"there is no command {words[1]}")
        if words[1] == "list" and len(words) == 3:
            check_command(words[1:])
        known = options_of(words[1]) if words[1] in COMMANDS else frozenset().union(*map(options_of, COMMANDS))
    elif words and words[0].startswith("--") and options:
        known = frozenset().union(*map(options_of, COMMANDS)) | _of_scripts()
    elif words[:1] == ["make"] and len(words) > 1:
        check_make(words[1:])
        return True
    elif words[:1] == ["python"] and len(words) > 1:
        if not options and words[1] != "-m" and not (ROOT / words[1]).is_file():
            raise Fault(f"there is no {words[1]}")
        if options:
            check_script(words[1:])
        return True
    else:
        return False
    for option in options:
        if option not in known and not (option.endswith(".*") and any(k.startswith(option[:-1]) for k in known)):
            raise Fault(f"there is no option {option}")
    return True


@cache
def _of_scripts() -> frozenset[str]:
    sources = [path.read_text() for folder in ("scripts", "tests/robustness") for path in (ROOT / folder).glob("*.py")]
    return frozenset(re.findall(r"\"(--[a-z][a-z-]*)\"", "".join(sources)))
