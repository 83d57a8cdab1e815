# SPDX-License-Identifier: Apache-2.0
"""`rekindle prompt`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rekindle.cli.arguments import begin
from rekindle.prompting.options import PromptOptions

EPILOGUE = """
also: --json, --debug. --out holds map.png (cosines, dark 0 to pale 1, over the grey image), mask.png (one channel, 255 within),
contour.png, all of the image's size, and prompt.npz with `scores` [gh, gw] and `prompts` (row, column, 1 or -1). `rekindle app`
shows the same in a browser.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle prompt --help`."""
    if (begun := begin(arguments, PromptOptions, "prompt", EPILOGUE)) is None:
        return 0
    options, is_json = begun
    print(f"rekindle prompt: {options.image or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.prompting.job import run_prompt

    done = run_prompt(options, watcher=TerminalWatcher())
    if is_json:
        print(json.dumps({"out": str(done.out), "size": done.size, "grid": done.grid, "share": round(done.share, 6)}))
    else:
        print(f"done: the mask covers {done.share:.1%} of {done.size[0]} x {done.size[1]} px, in {done.out}")
    return 0
