# SPDX-License-Identifier: Apache-2.0
"""`rekindle extract`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rekindle.cli.arguments import begin
from rekindle.measuring.options import ExtractOptions

EPILOGUE = """
also: --json, --debug. --out holds patches/<number>-<name>.npz with `patches` float16 [gh, gw, D] for each
image, and features.npz with `mean` [n, D] (of the patches), `cls` [n, D] where there is a class token,
`paths`, and `files`; with --pictures also pca/, clusters/, attention/ and film.gif.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle extract --help`."""
    if (begun := begin(arguments, ExtractOptions, "extract", EPILOGUE)) is None:
        return 0
    options, is_json = begun
    print(f"rekindle extract: features of {options.images or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.measuring.extract import run_extract

    done = run_extract(options, watcher=TerminalWatcher())
    if is_json:
        print(json.dumps({"out": str(done.out), "images": done.images, "skipped": done.skipped}))
    else:
        print(f"done: features of {done.images} images in {done.out}, {done.skipped} skipped")
    return 0
