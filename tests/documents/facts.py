# SPDX-License-Identifier: Apache-2.0
"""What result files say: every number with the names that lead to it, so that a cell of a table can be looked up.

A fact has one number (a score, a time), two (mean and standard deviation) or three (a difference and its interval, with its
verdict). Its labels are the names on the way to it: keys, and the names of method, protocol and the like beside it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

PACKS = ("camvid", "dubai", "nuclei", "cwfid", "ucmerced", "davis")
NAMES = (
    *("method", "framework", "model", "protocol", "metric", "panel", "test", "data", "label", "side", "precision"),
    *("world", "rule"),  # of `rekindle study calibration`
)
# Settings, counts, what the rows of a matrix sum up, and differences, which count with their intervals alone.
SKIPPED = set(
    "grid columns software config counts per_class cells starts request by_training_seed difference low high level".split()
    + "words checks".split()
)


@dataclass(frozen=True)
class Fact:
    """Numbers of a file. `needs`: a label without which they are not meant (one metric of many)."""

    labels: frozenset[str]
    numbers: tuple[float, ...]
    verdict: str = ""
    needs: str = ""


@cache
def facts_of(path: Path) -> list[Fact]:
    """All facts of a JSON or JSONL file."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    data = [json.loads(line) for line in lines]
    found = re.search(r"seed(\d)", path.stem)
    labels = {path.stem, *_packs(path.stem), *([f"seed {found.group(1)}"] if found else [])}
    return [fact for value in data for fact in _walk(value, frozenset(labels), "")]


def summaries(paths: Iterable[Path]) -> list[Fact]:
    """By pack and framework, over the methods of matrices: median, least, greatest, and how often each verdict fell."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for path in paths:
        for row in json.loads(path.read_text()).get("rows", []):
            for column, pooled in [*row["pooled"].items(), ("overall", row["overall"])]:
                if pooled:  # a row that was not run says nothing
                    groups.setdefault((min(_packs(path.stem)), row["framework"].lower(), column), []).append(pooled)
    found = []
    for labels, group in groups.items():
        values = [pooled["difference"] for pooled in group if "difference" in pooled]
        numbers = (median(values), min(values), max(values)) if values else ()
        names = frozenset(labels) | ({"overlap"} if labels[2] == "similarity" else set())
        found.append(Fact(names, numbers, tally(Counter(pooled["verdict"] for pooled in group))))
    return found


def tally(counts: Mapping[str, int]) -> str:
    """How often each word fell, those that did."""
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()) if count)


def _walk(value: Any, labels: frozenset[str], key: str) -> Iterator[Fact]:
    if isinstance(value, dict):
        labels = labels | _names(value)
        yield from _known(value, labels, key)
        for name, entry in value.items():
            if key == "metrics" and isinstance(entry, float):
                yield Fact(labels | {name.lower()}, (entry,), needs=name.lower())
            elif name not in SKIPPED and not (name in ("least", "most") and "value" in value):  # a rate's own interval
                yield from _walk(entry, labels | {name.lower()}, name)
    elif isinstance(value, list):
        if value and key == "by_seed":
            yield Fact(labels, (fmean(value),))
        elif value and isinstance(value[0], dict) and "protocol" in value[0] and "metrics" in value[0]:
            yield from _pooled(value, labels)
        elif key != "seconds":  # of single rounds: their median counts
            for entry in value:
                yield from _walk(entry, labels, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield Fact(labels, (value,))
    elif isinstance(value, str) and key == "lines":
        name, rest = value.lower().split(":")
        for before, number, after in re.findall(r"(paper )?(\d+\.?\d*) ?([a-z ]*)", rest):
            yield Fact(labels | {name, (before or after).strip()}, (float(number),))


def _names(value: dict[str, Any]) -> set[str]:
    """The names that stand in an object; of a model's path every part."""
    texts = [str(value[name]) for name in NAMES if isinstance(value.get(name), str)]
    for name in ("row", "against"):  # "recipe-camvid: sharp/recipe", of `rekindle compare --rows`
        texts += re.split(r": |/(?=[^/]*$)", value[name]) if isinstance(value.get(name), str) else []
    found = {part.lower().removesuffix(".safetensors") for text in texts for part in (text, *text.split("/"))}
    found |= {f"{value[name]:.0%}" for name in ("share", "images") if isinstance(value.get(name), float)}
    found |= {f"{value['lr']:g}"} if "lr" in value else set()
    if isinstance(value.get("config"), dict) and value["config"].get("init") == "random":
        found.add("random")
    if found & {"similarity"}:
        found.add("overlap")
    return found | {pack for text in found for pack in _packs(text)}


def _packs(text: str) -> set[str]:
    return {pack for pack in PACKS if pack in text and "photographs" not in text}


def _known(value: dict[str, Any], labels: frozenset[str], key: str) -> Iterator[Fact]:
    """What several numbers of an object say together."""
    if {"value", "least", "most"} == value.keys():
        yield Fact(labels, (value["value"], value["least"], value["most"]))
    column = {"overlap"} if key.startswith("similarity") else set()
    labels = labels | column
    if {"difference", "low", "high", "verdict"} <= value.keys():
        yield Fact(labels, (value["difference"], value["low"], value["high"]), value["verdict"])
        starts = [value[name] for name in ("start", "start_mean") if name in value]
        yield from (Fact(labels | {"start"}, (start,), needs="start") for start in starts)
    if {"base", "base_std", "model", "model_std"} <= value.keys():
        for numbers in ((value["base"],), (value["base"], value["base_std"])):
            yield Fact(labels | {"start"}, numbers, needs="start")
        yield Fact(labels, (value["model"], value["model_std"]))
    if "better" in value and "undecided" in value:
        yield Fact(labels, (), value["verdict"])
    if value and all(isinstance(entry, int) for entry in value.values()):
        yield from (Fact(labels, (number,)) for number in (sum(value.values()), len(value)))
    if "trained" in value and "refused" in value:
        yield Fact(labels, (value["trained"] + value["refused"],))
    if "sides" in value and "case" in value:
        yield from _bench(value, labels)


def _pooled(results: list[dict[str, Any]], labels: frozenset[str]) -> Iterator[Fact]:
    """Mean and deviation over the seeds of every protocol, model and metric."""
    groups: dict[tuple[frozenset[str], str], list[float]] = {}
    for result in results:
        for metric, score in result["metrics"].items():
            groups.setdefault((labels | _names(result), metric.lower()), []).append(score)
    for (names, metric), scores in groups.items():
        deviation = stdev(scores) if len(scores) > 1 else 0.0
        for numbers in ((fmean(scores),), (fmean(scores), deviation)):
            yield Fact(names | {metric}, numbers, needs=metric)


def _bench(value: dict[str, Any], labels: frozenset[str]) -> Iterator[Fact]:
    """Times, memory, and how ours compare with LightlyTrain's."""
    case, sides = value["case"], value["sides"]
    labels = labels | {f"rank {case['rank']}", case["precision"]} if "bench" in value else labels
    if "head_hidden" in case:
        labels = (
            labels | {f"{case['blocks'] or 'all'} blocks"} | ({"narrow head"} if case["head_hidden"] < 2048 else set())
        )
    for side in sides:
        mine, seconds = labels | _names(side), median(side["seconds"])
        yield Fact(mine | {"seconds"}, (seconds,))
        if "peak_bytes" in side:
            yield Fact(mine | {"peak of the process"}, (side["peak_bytes"] / 2**30,))
        if side.get("images"):
            yield Fact(mine | {"ms per image"}, (1000 * seconds / side["images"],))
        if value.get("bench") == "step" and side["label"].startswith("rekindle"):
            peer = next(other for other in sides if other["label"].startswith("lightly-train"))
            method = side["label"].split()[1]
            yield Fact(mine | {method, "speed"}, (peer["median_s"] / side["median_s"],))
            yield Fact(mine | {method, "peak memory"}, (side["peak_bytes"] / peer["peak_bytes"],))
