# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from rekindle.bench.options import BenchOptions
from rekindle.bench.running import BenchRow, build_case, compare_sides, describe_machine
from rekindle.bench.synthetic import write_images
from rekindle.bench.table import BENCHES, LIMIT, TINY, VIT_S, sides_of
from rekindle.bench.timing import SideTimes
from rekindle.core.errors import RequestError


def side(label: str, seconds: float, images: int, flops: int | None = None) -> SideTimes:
    facts: dict[str, object] = {} if flops is None else {"flops": flops}
    return SideTimes(label, (seconds,), images, 0.0, 0, 0, facts)


def test_ratios_are_times_for_an_image_and_the_limit_is_a_rate() -> None:
    """By hand: 2 s for 4 images against 3 s for 2; the machine does 100 FLOPs in 0.5 s, so 200 a second."""
    rows = compare_sides(
        [side("ours", 2.0, 4, 100), side("peer", 3.0, 2, 300), side("silent", 1.0, 2), side(LIMIT, 0.5, 0, 100)]
    )
    assert [row.ratio for row in rows] == [1.0, 3.0, 1.0, None]
    assert [row.limit_share for row in rows] == [0.25, 0.5, None, 1.0]
    assert all(row.limit_share is None for row in compare_sides([side("ours", 2.0, 4, 100)]))


def test_a_row_is_plain_json() -> None:
    text = json.dumps(BenchRow(side("ours", 2.0, 4, 100), 1.0, None).to_dict())
    assert json.loads(text)["ratio"] == 1.0 and json.loads(text)["images_per_s"] == 2.0
    assert {"cpu", "cores", "threads", "torch"} <= describe_machine(3).keys()
    assert describe_machine(3)["threads"] == 3


@pytest.mark.parametrize("name", BENCHES)
def test_every_target_of_the_table_exists(name: str) -> None:
    """Peers cannot be imported here, so the class is looked for in the source."""
    bench = BENCHES[name]
    targets = [*bench.ours.values(), *(t for peer in bench.peers.values() for t in peer.values())]
    targets += [bench.runner] if bench.runner else []
    assert targets
    for target in targets:
        module, _, wanted = target.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, target
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        assert wanted in {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}, target


def test_sides_are_ours_then_the_peers_then_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    options = BenchOptions(name="step", peer=("lightly", "lightly-train", "lightly"))
    assert list(sides_of(options)) == ["rekindle dino", "rekindle glare", "lightly dino", "lightly-train dino", LIMIT]
    assert list(sides_of(BenchOptions(name="step", method="glare"))) == ["rekindle glare", LIMIT]
    dinov2 = BenchOptions(name="step", method="dino", peer=("lightly-train-dinov2",))
    assert list(sides_of(dinov2)) == ["rekindle dino", "lightly-train dinov2", LIMIT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "say what to measure: "),
        ({"name": "stp"}, "did you mean 'step'"),
        ({"peer": ("lightning-train",)}, "unknown peer 'lightning-train'; did you mean 'lightly-train'"),
        (
            {"name": "extract", "peer": ("lightly",)},
            "bench extract has no side for it; it has no peers; lightly is a peer of",
        ),
        ({"peer": ("albumentations",)}, "bench step has no side for it; peers of this bench: lightly, lightly-train"),
        ({"peer": ("lightly-train",)}, "not installed in this environment; .* pip install lightly-train"),
        ({"peer": ("lightly-train-dinov2",)}, r"not installed in this environment; .* pip install lightly-train \("),
        ({"method": "mocov9"}, "unknown method of this bench 'mocov9'"),
    ],
    ids=str,
)
def test_a_wrong_request_is_answered_with_what_is_possible(
    changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=message):
        sides_of(BenchOptions.model_validate({"name": "step", **changes}))


def test_a_case_is_complete_plain_and_follows_the_bench() -> None:
    step = build_case(BenchOptions(name="step", accelerator="cpu", num_images=3))
    start = build_case(BenchOptions(name="start", accelerator="cpu"))
    assert (step["backbone"], step["num_images"], step["device"]) == (VIT_S, 3, "cpu")
    assert (start["backbone"], start["num_images"]) == (TINY, 20_000)
    assert json.loads(json.dumps(step)) == step
    assert not {"name", "peer", "rounds", "out"} & step.keys()


def test_images_are_made_from_the_seed(tmp_path: Path) -> None:
    first = sorted(write_images(tmp_path / "a", 70, height=20, width=30, seed=0).rglob("*.jpg"))
    again = sorted(write_images(tmp_path / "b", 2, height=20, width=30, seed=0).rglob("*.jpg"))
    other = sorted(write_images(tmp_path / "c", 1, height=20, width=30, seed=1).rglob("*.jpg"))
    assert len(first) == 70
    contents = [path.read_bytes() for path in first]
    assert len(set(contents)) == 64
    assert contents[:2] == [path.read_bytes() for path in again]
    assert other[0].read_bytes() != contents[0]
    with Image.open(first[0]) as image:
        assert image.size == (30, 20)
