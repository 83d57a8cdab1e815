# SPDX-License-Identifier: Apache-2.0
"""Command-line parsing: tyro reads the same models that a run file and a Python call use."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from rekindle.cli import require_value
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import explain_validation, leaves
from rekindle.core.options import Options
from rekindle.methods import METHODS
from rekindle.pretraining.options import Resolved, Source, read_run_file, resolve, run_model

Model = TypeVar("Model", bound=BaseModel)


@dataclass
class Taken:
    """What was taken out of the arguments before tyro sees them."""

    rest: list[str]
    flags: set[str]
    values: dict[str, str]


def take(arguments: Sequence[str], *, flags: Sequence[str] = (), values: Sequence[str] = ()) -> Taken:
    """Take out flags (`--json`) and options with a value (`--config FILE`, `--config=FILE`)."""
    taken = Taken([], set(), {})
    i = 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        if arguments[i] in flags:
            taken.flags.add(arguments[i])
        elif name in values:
            taken.values[name] = value if equals else require_value(arguments, i)
            i += 0 if equals else 1
        else:
            taken.rest.append(arguments[i])
        i += 1
    return taken


def parse(model: type[Model], arguments: Sequence[str], *, program: str, default: Model | None = None) -> Model:
    """Let tyro read the arguments of `model`; raises RequestError for what it refuses."""
    try:
        return _tyro(model, list(arguments), program, default)
    except ValidationError as error:
        raise explain_validation(model, error, "command line", groups=METHODS) from None


def begin(arguments: Sequence[str], model: type[Model], program: str, epilogue: str) -> tuple[Model, bool] | None:
    """Options of a plain command, and whether --json was given; None where its help was asked for, and is printed.

    Raises: RequestError for what is not understood.
    """
    if {"--help", "-h"} & {*arguments}:
        print_help(None, model, program=program)
        print(epilogue)
        return None
    taken = take(arguments, flags=["--json"])
    return parse(model, taken.rest, program=program), bool(taken.flags)


def _tyro(model: type[Model], arguments: list[str], program: str, default: Model | None) -> Model:
    errors = io.StringIO()
    keyword: dict[str, Any] = {} if default is None else {"default": default}
    wants_help = "-h" in arguments or "--help" in arguments
    try:
        with contextlib.ExitStack() as stack:
            if not wants_help:
                stack.enter_context(contextlib.redirect_stderr(errors))
                stack.enter_context(contextlib.redirect_stdout(errors))
            parsed: Model = tyro.cli(model, args=arguments, prog=f"rekindle {program}", **keyword)
            return parsed
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise RequestError(_plain(errors.getvalue()) or "the arguments could not be understood") from None


def _plain(text: str) -> str:
    """The message inside tyro's frame, without the frame and without pydantic's references."""
    lines = [line.strip(" │╭╮╰╯─┃") for line in text.splitlines()]
    dropped = (
        "Parsing error",
        "Required options",
        "For further information",
        "https://errors.pydantic",
        "For full helptext",
    )
    kept = [re.sub(r"\[type=.*|input_value=.*", "", line).strip() for line in lines if not line.startswith(dropped)]
    kept = [line for line in kept if line.strip("- ") and "input_type=" not in line]
    kept = [line for line in kept if line not in ("Value error", "Unrecognized options")]
    message = "\n".join(kept)
    whole = re.search(r"Error parsing (\S+): \d+ validation errors? for \S+\nValue error, ", message)
    if whole is not None:  # of a group's values together, not of one of them
        return f"{whole[1]}: {message[whole.end() :]}"
    refused = re.search(r"Error parsing (\S+): \d+ validation errors? for \S+\n(\S+)\n(?:Value error, )?", message)
    if refused is not None:
        group, option = refused.groups()
        name = option if group.endswith("Options") else f"{group}.{option}"
        message = message[: refused.start()] + f"{name}: " + message[refused.end() :]
    return message


def parse_run(arguments: Sequence[str], *, program: str) -> tuple[Resolved, Taken]:
    """Options of a pre-training run from `--config FILE` and the rest of the command line."""
    taken = take(arguments, flags=["--json", "--resume", "--help", "-h"], values=["--config"])
    file = read_run_file(taken.values["--config"]) if "--config" in taken.values else {}
    file_name = taken.values.get("--config", "options")
    chosen = take(taken.rest, values=["--method", "--init", "--recipe"]).values
    asked = {name.removeprefix("--"): value for name, value in chosen.items()}
    before = resolve(file, asked, file_name=file_name)
    options = parse(type(before.options), taken.rest, program=program, default=before.options)
    sources: dict[str, Source] = dict(before.sources)
    sources.update({name: "asked" for name in leaves(options.model_dump()) if _was_given(name, taken.rest)})
    return Resolved(options, sources), taken


def asked_tree(resolved: Resolved, *sources: Source) -> dict[str, object]:
    """Only what the command line gave, or what `sources` name, as a nested tree."""
    tree: dict[str, object] = {}
    flat = resolved.options.model_dump()
    for name, source in resolved.sources.items():
        if source not in (sources or ("asked",)):
            continue
        *groups, last = name.split(".")
        value, place = flat, tree
        for group in groups:
            value = value[group]
            place = place.setdefault(group, {})  # type: ignore[assignment]
        place[last] = value[last]
    return tree


def _was_given(name: str, arguments: Sequence[str]) -> bool:
    flag = name.replace("_", "-")
    *groups, last = flag.split(".")
    names = (f"--{flag}", "--" + ".".join([*groups, f"no-{last}"]))
    return any(a.partition("=")[0].replace("_", "-") in names for a in arguments)


def print_help(method_options: tuple[str, type[Options]] | None, model: type[BaseModel], *, program: str) -> None:
    """Print the help of a command, with the options of a method where one is named."""
    shown = model if method_options is None else run_model(*method_options)
    with contextlib.suppress(SystemExit):
        tyro.cli(shown, args=["--help"], prog=f"rekindle {program}")
    sys.stdout.flush()
