# SPDX-License-Identifier: Apache-2.0
"""The command `rekindle`. Only what a command needs is imported, so that help appears at once."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rekindle.core.errors import RekindleError, RequestError, unknown_name
from rekindle.core.processor import settle_threads

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("rekindle.cli.demo", "the whole story on embedded data, in minutes, on a CPU"),
    "pretrain": ("rekindle.cli.pretrain", "adapt a backbone to your own images, without labels"),
    "plan": ("rekindle.cli.plan", "memory, time and disk of a run before its first step, and what is chosen for it"),
    "evaluate": ("rekindle.cli.evaluate", "one model, one protocol, one result file"),
    "compare": (
        "rekindle.cli.compare",
        "better, no difference, or worse than the base, with an interval, or that it cannot be judged",
    ),
    "report": ("rekindle.cli.report", "one page about a run: did it help, where, what did it cost"),
    "study": ("rekindle.cli.study", "forgetting, data scale, label efficiency: one command each"),
    "extract": ("rekindle.cli.extract", "dense and image-level features as files"),
    "prompt": ("rekindle.cli.prompt", "places in an image in, map and mask of what is alike out"),
    "app": ("rekindle.cli.app", "the same by clicking: a page on this machine, with PCA and attention"),
    "export": ("rekindle.cli.export", "a model for timm, transformers, ONNX or mmsegmentation, checked"),
    "check": ("rekindle.cli.check", "what is wrong with your images and masks, before you train"),
    "bench": ("rekindle.cli.bench", "how fast it is here, with peers beside it where they are installed"),
    "list": ("rekindle.cli.catalogue", "methods, adapters, protocols, formats, backbones, datasets"),
    "config": ("rekindle.cli.config", "every value of a run, and what set it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from rekindle import __version__

        print(__version__)
        return 0
    settle_threads(os.environ)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        if arguments[0] not in COMMANDS:
            raise unknown_name("command", arguments[0], COMMANDS)
        module = importlib.import_module(COMMANDS[arguments[0]][0])
        code: int = module.run(arguments[1:])
        return code
    except RekindleError as error:
        if debug:
            raise
        if "--json" in arguments:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        print(f"rekindle {arguments[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        print(
            f"rekindle {arguments[0]}: {type(error).__name__}: {error}\n"
            "This looks like a fault of ours; run again with --debug for the trace and report it.",
            file=sys.stderr,
        )
        return 1


def _overview() -> str:
    lines = [
        "usage: rekindle COMMAND [options]",
        "",
        "Continual self-supervised pre-training of vision transformers, and an honest verdict.",
        "",
        "commands:",
        *(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "`rekindle COMMAND --help` lists a command's options. Everywhere: --json prints one object on standard output,",
        "--debug shows the trace of an error.",
        "",
        "Start with `rekindle demo`, or with your own images:",
        "  rekindle pretrain --images my_images --backbone vit_small_patch16_224.dino --out runs/mine",
        "  rekindle compare vit_small_patch16_224.dino runs/mine --protocol dense-retrieval --data my_labelled_data",
    ]
    return "\n".join(lines)


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries without looking for garbage meanwhile, which finds none and takes a sixth of the time.

    What is loaded stays until the end, so later searches leave it out; the last one, as Python ends, has it again, or libraries
    that count what they made (nanobind) would report all of it as lost.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if was_enabled:
            gc.enable()


def require_value(arguments: Sequence[str], index: int) -> str:
    """The argument after an option. Raises RequestError if there is none."""
    if index + 1 >= len(arguments):
        raise RequestError(f"{arguments[index]} needs a value")
    return arguments[index + 1]
