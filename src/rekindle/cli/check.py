# SPDX-License-Identifier: Apache-2.0
"""`rekindle check`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekindle.cli.arguments import parse, print_help, take
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.data.options import DataOptions
from rekindle.views.options import ViewsOptions

KINDS = ("unreadable", "duplicate", "tiny", "constant", "clipped")
LISTED = 5


class CheckOptions(Options):
    """Look at every image once: what is unreadable, repeated, empty or belongs together, and what the model will see."""

    images: str = ""
    """Images to check: a folder, a glob, a list file, a tar pattern, or hf:NAME."""
    data: str = ""
    """Labelled data to check as well (a folder, or NAME:ROOT of `rekindle list datasets`): labels that are missing or do not
    fit, and images shared between splits."""
    out: str = ""
    """Folder for check.json, mosaic.png (the views the model will see) and groups.csv (images that seem to belong together by
    times or as near-copies); without it nothing is written."""
    reading: DataOptions = DataOptions()
    """Reading images."""
    views: ViewsOptions = ViewsOptions()
    """The views of the mosaic; `views.local_size_px` is also where an image counts as tiny."""


def run(arguments: Sequence[str]) -> int:
    """Run the command: 0 if images can be used, 1 if none can, 2 for a wrong request."""
    if "--help" in arguments or "-h" in arguments:
        print_help(None, CheckOptions, program="check")
        return 0
    taken = take(arguments, flags=["--json"])
    options = parse(CheckOptions, taken.rest, program="check")
    if not options.images and not options.data:
        raise RequestError("give --images SRC, --data DATA, or both")
    from rekindle.pretraining.check import check

    def progress(done: int, total: int, what: str) -> None:
        if done == total or done % 200 == 0:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    report = check(
        options.images or None,
        options.data or None,
        reading=options.reading,
        views=options.views,
        out=Path(options.out) if options.out else None,
        progress=progress,
    )
    if "--json" in taken.flags:
        print(json.dumps(report))
    else:
        _print(report)
    return 0 if report["usable"] else 1


def _print(report: dict[str, object]) -> None:
    for source in report["sources"]:  # type: ignore[attr-defined]
        print(f"\n{source['name']}: {source['images']} images, {source['usable']} usable")
        print("  sizes: " + ", ".join(f"{w}x{h} ({n})" for (w, h), n in source["sizes"]))
        for kind in KINDS:
            found = [f for f in source["findings"] if f["kind"] == kind]
            if found:
                print(f"  {kind}: {len(found)}")
                for finding in found[:LISTED]:
                    print(f"    {finding['name']}: {finding['detail']}")
                if len(found) > LISTED:
                    print(f"    ... and {len(found) - LISTED} more (--json or --out lists all)")
        if source["wide"]:
            print(f"  wide: {source['wide']} images of about 2:1 or more; consider --views.overlap reject")
    for leak in report["leaks"]:  # type: ignore[attr-defined]
        print(f"  leakage: {leak['first']} is also in {leak['second']}")
    for fault in report["faults"]:  # type: ignore[attr-defined]
        print(f"  labels: {fault}")
    for told in report["absent"]:  # type: ignore[attr-defined]
        print(f"  not read: {told}")
    _print_groups(report["groups"])  # type: ignore[arg-type]
    if report["mosaic"]:
        print(f"\nmosaic of views: {report['mosaic']}")


def _print_groups(groups: Sequence[dict[str, Any]]) -> None:
    for source in dict.fromkeys(found["source"] for found in groups):
        print(f"\n{source}: images seem to belong together; tell evaluate and compare so, one of:")
        for found in groups:
            if found["source"] != source:
                continue
            rule = found["group_by"]
            asked = (
                f"--group-by {shlex.quote(rule)}" if rule else "(give --out DIR, and a table for --group-by is written)"
            )
            print(f"  {asked}\n    {found['told']}, by {found['from']}")
            if found["shared"]:
                print(
                    f"    in other splits as well: {found['shared']}; put each into one split, or add --allow-shared-groups"
                )
