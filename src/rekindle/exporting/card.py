# SPDX-License-Identifier: Apache-2.0
"""The model card: what it is, what it came from, under which licence, how it was trained, what was measured.

Names and licences come from files that others wrote: all text from them is escaped, and of paths only the last part
is shown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rekindle.evaluation.verdict.telling import covers, interval, items_of, percent, plain, signed
from rekindle.exporting.source import Exported, Source, short_name
from rekindle.measuring.comparison import Row
from rekindle.methods import METHODS
from rekindle.networks.checkpoints.create import FILE_SUFFIXES

HUB_LICENCES = {
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "unlicense",
    "other", "unknown",
}  # fmt: skip
TRAINED = {"adapters": "adapters; the base is frozen", "all": "all weights", "norm": "the LayerNorms"}


def model_card(source: Source, exported: Exported, rows: Sequence[Row]) -> str:
    """Return README.md with its YAML front matter."""
    base = _base(source)
    sections = [
        f"# {escape(short_name(source.name))}, exported by Rekindle",
        _section("Base", _table(base | {"SHA-256 of its tensors": base_hash(source)})),
        _section("Training", _training(source)),
        _section("Verdict", _verdict(rows)),
        _section("How to load", f"```python\n{exported.usage.rstrip()}\n```", _pixels(source), *exported.notes),
        _section("Parity", _parity(source, exported)),
    ]
    return _front_matter(source, exported) + "\n" + "\n\n".join(sections) + "\n"


def escape(text: object) -> str:
    """Text as Markdown shows it, on one line: no tags, links, tables or headings come out of it."""
    line = html.escape(_one_line(text), quote=False)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return re.sub(r"([\\`*_\[\]|~$]|^[#+-])", r"\\\1", line)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def base_hash(source: Source) -> str:
    """Content hash of the base of a run, else of the weights as published."""
    return str(source.description.get("base", {}).get("sha256") or source.backbone.identity.sha256)


def _front_matter(source: Source, exported: Exported) -> str:
    licence = _licence(source)
    tags = ["rekindle", "vision-transformer", "self-supervised-learning", *exported.tags]
    method = source.description.get("method")
    if method:
        tags += ["continual-pre-training" if method in METHODS else "fine-tuned", str(method)]
    if source.adapter is not None:
        tags.append(source.adapter.kind)
    known = licence is not None and licence.lower() in HUB_LICENCES
    front: dict[str, Any] = {"license": licence.lower() if known and licence else ("other" if licence else "unknown")}
    if licence and not known:
        front["license_name"] = _one_line(licence)
    published = hub_name(_base_name(source))
    if published is not None:
        front["base_model"] = published
    front |= {
        "library_name": exported.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": [_one_line(tag) for tag in tags],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _base_name(source: Source) -> str:
    return str(source.description.get("base", {}).get("name") or source.backbone.identity.name)


def _licence(source: Source) -> str | None:
    licence = source.description.get("base", {}).get("licence") or source.backbone.identity.licence
    return None if licence is None else str(licence)


def hub_name(name: str) -> str | None:
    """Return the base's name on the model hub, None for a file or a description."""
    if name.startswith("hf-hub:"):
        name = name.removeprefix("hf-hub:")
    elif re.fullmatch(r"\w+\.\w+", name) and not name.endswith(FILE_SUFFIXES):
        name = f"timm/{name}"
    else:
        return None
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None


def _base(source: Source) -> dict[str, object]:
    return {"Name": short_name(_base_name(source)), "Licence of its weights": _licence(source) or "not stated"}


def _training(source: Source) -> str:
    if not source.description:
        return "The weights are the base's, as loaded."
    adapter, config = source.adapter, source.config
    data: dict[str, object] = {
        "Method": source.description.get("method") or "none",
        "Trained": TRAINED.get(str(source.description.get("train")), source.description.get("train") or "nothing"),
        "Optimizer steps": source.description.get("steps"),
    }
    if adapter is not None:
        sizes = {k: v for k, v in adapter.model_dump(exclude_defaults=True).items() if k != "kind"}
        data["Adapters"] = ", ".join([adapter.kind, *(f"{k} = {v}" for k, v in sizes.items())])
    if config:
        views = config.get("views") if isinstance(config.get("views"), Mapping) else {}
        data |= {
            "Images": short_name(str(config.get("images", ""))),
            "Batch size": config.get("batch_size"),
            "Seed": config.get("seed"),
            "Crops (px)": f"{views.get('global_size_px')} global, {views.get('local_size_px')} local"
            if views
            else None,
        }
    return _table(data)


def _verdict(rows: Sequence[Row]) -> str:
    if not rows:
        return "None was given; `rekindle compare` measures this model against its base."
    lines = [
        "| Protocol | Metric | Base | This model | Difference | Interval | Verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        v = row.verdict
        values = [plain(row.metric, side) for side in (v.base, v.model)]
        cells = [escape(row.protocol), escape(row.metric), *values, signed(row.metric, v.difference, unit=True)]
        cells.append(f"{interval(v, row.metric)} ({percent(v.level)})")
        lines.append(f"| {' | '.join([*cells, f'**{escape(v.verdict)}**'])} |")
    told = [
        f"- {escape(row.protocol)}: {escape(f'{row.told}. {covers(row.verdict, items_of(row.protocol), row.subject)}')}"
        for row in rows
    ]
    return "\n".join([*lines, "", *told])


def _pixels(source: Source) -> str:
    mean, std = ([round(x, 6) for x in values] for values in (source.backbone.mean, source.backbone.std))
    return f"Pixels are RGB in [0, 1], then normalised with mean {mean} and standard deviation {std}."


def _parity(source: Source, exported: Exported) -> str:
    return (
        f"Against the original on random pixels in float32: {exported.parity}. Content hash of the original: "
        f"`{source.model_hash[:64]}`."
    )


def _section(title: str, *paragraphs: str) -> str:
    return "\n\n".join([f"## {title}", *paragraphs])


def _table(values: Mapping[str, object]) -> str:
    lines = [f"| {escape(k)} | {escape(v)} |" for k, v in values.items() if v is not None]
    return "\n".join(["| | |", "|---|---|", *lines])
