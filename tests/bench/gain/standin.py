# SPDX-License-Identifier: Apache-2.0
"""Speaks what `rekindle.bench.gain.child` speaks, and trains nothing: what each step takes stands in the recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def say(**told: object) -> None:
    print(json.dumps(told), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    recipe, run = request["file"], Path(request["asked"]["out"])
    if recipe.get("fails"):
        say(error="steps = 0: give more", is_request=True)
        return
    heads = recipe["heads"]
    facts = {"rekindle": "0", "torch": "0", "threads": 1, "device": "cpu", "precision": "fp32"}
    say(ready={"steps": recipe["steps"], "batch_size": 4, "head_steps": heads} | facts)
    asked = json.loads(sys.stdin.readline())
    heads = heads if asked["head_steps"] is None else asked["head_steps"]
    sys.stdin.readline()
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("seed: 0\n")
    for step in range(1, recipe["steps"] + 1):
        with Path(recipe["told"]).open("a") as stream:
            stream.write(f"{request['label']} {step}\n")
        say(step=step, seconds=recipe["seconds"][0 if step <= heads else 1], memory_bytes=7)
        if step == recipe.get("dies"):
            sys.exit("the disk is full")
        if step in asked["pauses"]:
            if asked["models"] and step < recipe["steps"]:
                Path(asked["models"], f"step-{step:06}").mkdir(parents=True)
            say(paused=step)
            if not sys.stdin.readline():
                return
    say(end={"steps": recipe["steps"], "is_finished": True})


main()
