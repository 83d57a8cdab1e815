# SPDX-License-Identifier: Apache-2.0
"""`rekindle list`: what there is, a line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from rekindle.adapters import ADAPTERS
from rekindle.cli.arguments import take
from rekindle.core.errors import RequestError, unknown_name
from rekindle.core.tables import Entry
from rekindle.data.published.named import DATASETS as NAMED_DATASETS
from rekindle.evaluation import PROTOCOLS
from rekindle.exporting import FORMATS
from rekindle.methods import METHODS
from rekindle.networks.checkpoints.catalogue import BACKBONES, MODEL_FORMS

DATASETS: dict[str, str] = {
    "DIR for segmentation": "images/<split>/**, masks/<split>/**.png of the same stem (one channel of ids), "
    'classes.json: {"names": [...], "ignore_index": 255}; with "colors" and "palette": true the masks hold those colours',
    "DIR for objects (prompted-seg, similarity, clustering)": "as for segmentation, or COCO's annotations/instances_<split>.json "
    "with the images in <split>/ or images/<split>/",
    "DIR of images (variance, cka)": "<split>/** or images/<split>/**, no labels",
    "DIR for classification": "<split>/<class>/**, or <split>.csv with the columns file and class",
    "DIR for retrieval": "<split>/jpg/*.jpg and <split>/gnd_<split>.pkl or .json (revisited Oxford and Paris: --split roxford5k)",
    "SRC without labels": "a folder (nested, any mix of formats), a glob, a list file (txt, csv, parquet), "
    "a tar pattern ('shards-{000..003}.tar'), or hf:NAME",
}


def run(arguments: Sequence[str]) -> int:
    """Print one table."""
    taken = take(arguments, flags=["--json", "--help", "-h"])
    if taken.flags & {"--help", "-h"}:
        print(f"usage: rekindle list {'|'.join(TABLES)} [--json]\n\nWhat there is, a line each.")
        return 0
    if len(taken.rest) != 1:
        raise RequestError(f"say what to list: {', '.join(TABLES)}")
    if taken.rest[0] not in TABLES:
        raise unknown_name("table", taken.rest[0], TABLES)
    lines = TABLES[taken.rest[0]]()
    if taken.flags:
        print(json.dumps({taken.rest[0]: lines}))
        return 0
    print(_aligned(lines))
    return 0


def told(table: Mapping[str, Entry]) -> str:
    """Return what a table holds, a line each."""
    return _aligned(_entries(table))


def _aligned(lines: Sequence[Mapping[str, str]]) -> str:
    width = max(len(line["name"]) for line in lines)
    licences = [f"  [{line['licence']}]" if "licence" in line else "" for line in lines]
    return "\n".join(f"{line['name']:<{width}}  {line['summary']}{x}" for line, x in zip(lines, licences, strict=True))


def _entries(table: Mapping[str, Entry]) -> list[dict[str, str]]:
    return _named({name: entry.told for name, entry in table.items()})


def _named(summaries: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "summary": summary} for name, summary in summaries.items()]


def _datasets() -> list[dict[str, str]]:
    named = [{"name": f"{name}:ROOT", "summary": d.summary, "licence": d.terms} for name, d in NAMED_DATASETS.items()]
    return _named(DATASETS) + named


def _backbones() -> list[dict[str, str]]:
    known = [{"name": b.name, "summary": b.summary, "licence": b.licence} for b in BACKBONES]
    return known + _named(dict(MODEL_FORMS))


TABLES: dict[str, Callable[[], list[dict[str, str]]]] = {
    "methods": lambda: _entries(METHODS),
    "adapters": lambda: _entries(ADAPTERS),
    "protocols": lambda: _entries(PROTOCOLS),
    "formats": lambda: _entries(FORMATS),
    "backbones": _backbones,
    "datasets": _datasets,
}
