# SPDX-License-Identifier: Apache-2.0
"""Command lines by chance: each ends with exit code 0, 1 or 2 and a message, never with a trace.

`python -m tests.robustness.arguments --count 2000 --seed 0 [--out FILE.json]` exits with 1 if one did anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rekindle.cli import COMMANDS, main
from rekindle.evaluation import PROTOCOLS
from rekindle.measuring.options import CompareOptions, EvaluateOptions, ExtractOptions
from rekindle.methods import METHODS
from rekindle.pretraining.options import PretrainOptions
from tests.robustness.configurations import leaves

SLOW = {"demo", "bench", "app"}
"""These work for minutes, or for ever, whatever follows them."""
VALUES = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "3",
        "1e9",
        "1e-9",
        "nan",
        "inf",
        "-inf",
        "99999999999999999999",
        "0x10",
        "None",
    ),
    *(
        "true",
        "False",
        "a,b",
        "[1, 2]",
        "{}",
        "a b",
        "é",
        "\udcff",
        "\n",
        "../..",
        "/",
        "/dev/null",
        "~",
        "*",
        "hf:",
        "hf:x/y",
    ),
    *("vit:width=32,depth=2,heads=2,patch=8,img=32", "vit:width=0", "vit:", "x.pth", "a.json", "a.yaml", "$(touch x)"),
    *METHODS,
    *PROTOCOLS,
)


@dataclass
class Found:
    """What the command lines came to.

    Attributes:
        codes: exit codes, counted.
        commands: tried, counted.
        broken: lines that ended otherwise, and how.
    """

    codes: dict[str, int] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def drawn(dice: random.Random, names: list[str]) -> list[str]:
    """A command line without the program's name."""
    command = dice.choice([*(c for c in sorted(COMMANDS) if c not in SLOW), "pretrain", "pretrain", "nonsense"])
    line = [command]
    for _ in range(dice.randrange(8)):
        kind = dice.random()
        if kind < 0.5:
            line.append(dice.choice(names))
            if dice.random() < 0.8:
                line.append(dice.choice(VALUES))
        elif kind < 0.6:
            line.append(f"{dice.choice(names)}={dice.choice(VALUES)}")
        elif kind < 0.7:
            name = dice.choice(names)
            line.append(name[: dice.randrange(2, len(name) + 1)] + dice.choice(["", "x", "-"]))
        else:
            line.append(dice.choice(VALUES))
    return line


def tried(line: list[str]) -> str:
    """Run a command line; return its exit code and what kind of end that is. Raises: AssertionError for a bad end."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = main(line)
        except SystemExit as stop:
            code = stop.code
    said = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code!r}"
    assert "Traceback" not in said and "fault of ours" not in said, said[-600:]
    assert code == 0 or said.strip() or out.getvalue().strip(), "it failed without a word"
    return str(code)


def harness(folder: Path, count: int, seed: int) -> Found:
    """Try `count` command lines, in `folder`."""
    names = sorted({f"--{name.replace('_', '-')}" for model in MODELS for name, _ in leaves(model, "")})
    names += ["--json", "--help", "-h", "--resume", "--config", "--grid", "--results", "--relative-to", "--dry-run"]
    dice, found = random.Random(seed), Found()
    codes: Counter[str] = Counter()
    commands: Counter[str] = Counter()
    with contextlib.chdir(folder):
        for _ in range(count):
            line = drawn(dice, names)
            commands[line[0]] += 1
            try:
                codes[tried(line)] += 1
            except Exception as error:
                found.broken.append(f"{line!r}: {''.join(traceback.format_exception_only(error)).strip()}")
                print(found.broken[-1], file=sys.__stderr__, flush=True)
    found.codes, found.commands = dict(sorted(codes.items())), dict(sorted(commands.items()))
    return found


MODELS = (PretrainOptions, EvaluateOptions, CompareOptions, ExtractOptions)


def main_() -> int:
    """Run the harness from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    target = asked.out.resolve() if asked.out else None
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = harness(Path(folder), asked.count, asked.seed)
    text = json.dumps({**asdict(found), "count": asked.count, "seed": asked.seed}, indent=1)
    print(text)
    if target:
        target.write_text(text + "\n")
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main_())
