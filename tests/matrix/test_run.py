# SPDX-License-Identifier: Apache-2.0
"""A whole matrix on miniature data: interrupted and continued, kept, failing, and as the command shows it."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle.adapters.saved import load_backbone, model_hash
from rekindle.cli import main
from rekindle.core.errors import RekindleError, RequestError
from rekindle.engine.watcher import StepReport
from rekindle.matrix.run import compare_grid
from rekindle.matrix.table import Table
from rekindle.measuring.measurement import Measurement
from rekindle.pretraining.run import pretrain
from tests.engine.running import Recorder
from tests.evaluation.toy import save_tiny
from tests.matrix.making import STEPS, tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Table:
    """The table of an uninterrupted run."""
    return compare_grid(tree(folder), out=str(folder / "whole"))


def _numbers(table: Table) -> dict[str, Any]:
    """The table without times and without where it lies."""
    content: dict[str, Any] = table.model_dump(mode="json")
    content["grid"].pop("out")
    for cell in content["cells"]:
        cell["options"].pop("out")
        cell.pop("train_s"), cell.pop("measure_s")
    return content


def _at(cell: int, step: int, act: Callable[[], None]) -> Recorder:
    """A watcher that acts after a step of the n-th training."""
    trained = [0]

    def after(report: StepReport) -> None:
        trained[0] += report.step == 1
        if (trained[0], report.step) == (cell, step):
            act()

    return Recorder(after)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _files(out: Path) -> dict[Path, int]:
    """Every file below runs and results -> when it was written."""
    return {p: p.stat().st_mtime_ns for kind in ("runs", "results") for p in (out / kind).rglob("*") if p.is_file()}


def test_the_table_has_every_start_cell_and_kind(folder: Path, whole: Table) -> None:
    out = folder / "whole"
    assert whole.is_complete and not whole.is_stopped
    assert [cell.run for cell in whole.cells] == [f"runs/tiny/{m}/adapters/seed-0" for m in ("glare", "dino")]
    for cell in whole.cells:
        assert (cell.steps_done, cell.error) == (STEPS, None)
        assert cell.options["out"] == str(out / cell.run)
        assert cell.model_hash == model_hash(load_backbone(out / cell.run)[0])  # of the file and of the model alike
        assert cell.train_s > 0 and cell.measure_s > 0
        assert set(cell.scores) == {"linear-seg", "dense-retrieval"}
    for row in whole.rows:
        for protocol, pooled in row.pooled.items():
            assert pooled.start_mean == pytest.approx(sum(whole.starts[0].scores[protocol].by_seed) / 2)
            assert pooled.difference == pytest.approx(pooled.mean - pooled.start_mean)
            assert pooled.low <= pooled.difference <= pooled.high
            assert row.metrics[protocol]["mIoU"] == pytest.approx(pooled.mean)
    assert Table.model_validate_json((out / "table.json").read_text()) == whole
    every = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert {"mIoU", "mAcc", "aAcc", "IoU/red"} <= {row["metric"] for row in every}
    rows = [row for row in every if row["metric"] == "mIoU"]
    assert all(not row["verdict"] for row in every if row not in rows)
    names = [(r["start"], r["method"], r["protocol"]) for r in rows]
    kinds = [("tiny", method) for method in ("", "glare", "dino")]
    assert names == [(*kind, protocol) for kind in kinds for protocol in ("linear-seg", "dense-retrieval")]
    assert float(rows[3]["difference"]) == whole.rows[0].pooled["dense-retrieval"].difference
    text = (out / "table.md").read_text()
    assert f"| tiny → dino | adapters | {100 * whole.rows[1].pooled['linear-seg'].mean:.2f}, " in text
    assert "| start → method | framework | linear-seg (mIoU, %) | dense-retrieval (mIoU, %) | overall |" in text


def test_a_stopped_matrix_goes_on_and_gives_the_same_table(folder: Path, whole: Table) -> None:
    out = folder / "stopped"
    watcher = _at(2, 2, _terminate)
    stopped = compare_grid(tree(folder), out=str(out), watcher=watcher)
    assert stopped.is_stopped and not stopped.is_complete
    assert [(c.state, c.steps_done) for c in stopped.cells] == [("finished", STEPS), ("stopped", 2)]
    assert any(f"seed 0: stopped after step 2 of {STEPS}" in line for line in watcher.messages)
    assert stopped.rows[1].waiting == [0]
    assert "Stopped:\n\n- tiny / dino / adapters / seed 0" in (out / "table.md").read_text()
    first = _files(out)
    watcher = Recorder()
    again = compare_grid(tree(folder), out=str(out), watcher=watcher)
    assert [report.step for report in watcher.steps] == [3]  # the first run was not trained again, nor steps 1 and 2
    assert any(
        line.startswith("[2/2] tiny / dino / adapters / seed 0: continuing after step 2") for line in watcher.messages
    )
    assert _numbers(again) == _numbers(whole)
    later = _files(out)
    kept = [path for path in first if "glare" in path.parts or "start" in path.name]
    assert kept and all(first[path] == later[path] for path in kept)
    assert again.cells[0].train_s == stopped.cells[0].train_s
    assert again.cells[1].train_s > stopped.cells[1].train_s


def test_a_matrix_stopped_while_it_measures_goes_on(
    folder: Path, whole: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, of_seed = folder / "measuring", [0], Measurement.of_seed

    def interrupted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # of the first cell; four are the start's
            _terminate()
        return of_seed(*args, **options)

    monkeypatch.setattr(Measurement, "of_seed", interrupted)
    stopped = compare_grid(tree(folder), out=str(out))
    assert [cell.state for cell in stopped.cells] == ["stopped", "waiting"]
    assert stopped.cells[0].steps_done == STEPS
    assert _numbers(compare_grid(tree(folder), out=str(out))) == _numbers(whole)
    assert calls[0] == 6 + 4 + 3  # five of the twelve were kept
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_matrix_writes_nothing_but_its_table_again(folder: Path, whole: Table) -> None:
    out = folder / "whole"
    before = _files(out)
    assert compare_grid(tree(folder), out=str(out)) == whole
    assert _files(out) == before


def test_results_by_the_older_rule_of_miou_are_kept_and_told_by_todays(folder: Path, whole: Table) -> None:
    """One table has one rule, also where some of its results were made before."""
    path = next((folder / "whole" / "results").rglob("*start-eval-0.json"))
    stored = path.read_text(encoding="utf-8")
    older = json.loads(stored)
    older["score"]["absent"] = "skip"
    older["metrics"] |= {"mIoU": 0.0123, "IoU/nothing": 0.0, "of another kind": 0.5}
    path.write_text(json.dumps(older), encoding="utf-8")
    before = _files(folder / "whole")
    try:
        again = compare_grid(tree(folder), out=str(folder / "whole"))
        assert _files(folder / "whole") == before
    finally:
        path.write_text(stored, encoding="utf-8")
    (column,) = {
        name for name, own in again.starts[0].scores.items() if path.name in str(own.results) and name in str(path)
    }
    found, expected = (table.starts[0].scores[column] for table in (again, whole))
    assert found.by_seed == expected.by_seed
    assert found.metrics["mIoU"] == pytest.approx(expected.metrics["mIoU"])
    assert [row.pooled for row in again.rows] == [row.pooled for row in whole.rows]


def test_more_seeds_are_pooled_with_those_that_are_there(folder: Path, whole: Table) -> None:
    watcher = Recorder()
    changes = tree(folder, seeds=[0, 1], methods={"dino": {}})
    table = compare_grid(changes, out=str(folder / "whole"), watcher=watcher)
    assert len(watcher.steps) == STEPS
    (row,) = table.rows
    pooled = row.pooled["linear-seg"]
    assert row.seeds == [0, 1]
    assert pooled.by_training_seed[0] == whole.rows[1].pooled["linear-seg"].mean
    assert len(pooled.by_training_seed) == 2
    assert "over 2 training seeds" in (folder / "whole" / "table.md").read_text()


def test_paired_seeds_measure_each_run_once(folder: Path, whole: Table) -> None:
    methods = {"glare": {}, "given": {"run": str(folder / "whole" / whole.cells[1].run)}}
    changes = {"seeds": [1, 0], "evaluation_seeds": "paired", "methods": methods}
    table = compare_grid(tree(folder, **changes), out=str(folder / "paired"))
    results = folder / "paired" / "results" / "linear-seg" / "tiny"
    assert sorted(p.name for p in (results / "glare" / "adapters").glob("*.json")) == [
        "seed-0-eval-0.json",
        "seed-1-eval-1.json",
    ]
    assert len(list(results.glob("start-eval-[01].json"))) == len(list(results.glob("given/**/*-eval-[01].json"))) == 2
    start = table.starts[0].scores["linear-seg"].by_seed  # of evaluation seeds 1 and 0
    glare, given = (row.pooled["linear-seg"] for row in table.rows)
    assert glare.by_training_seed == [cell.scores["linear-seg"].by_seed[0] for cell in table.cells[:2]]
    assert [glare.start_mean, given.start_mean] == pytest.approx([sum(start) / 2] * 2)
    assert len(given.by_training_seed) == 1
    assert "each run is measured with the seed of its training alone" in table.interval
    one = compare_grid(tree(folder, **changes, skip=[{"seed": 1}]), out=str(folder / "paired"))
    assert one.rows[0].pooled["linear-seg"].start_mean == pytest.approx(start[1])  # the partner of the one that is left


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(
    folder: Path, whole: Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the same command tries it again, and ends with the table of a run without a failure."""

    def failing(resolved: Any, **options: Any) -> Any:
        if resolved.options.method == "glare":
            raise RekindleError("the disk | is full")
        return pretrain(resolved, **options)

    grid, out = folder / "grid.yaml", folder / "failed"
    grid.write_text(yaml.safe_dump(tree(folder), sort_keys=False))
    monkeypatch.setattr("rekindle.matrix.run.pretrain", failing)
    assert main(["compare", "--grid", str(grid), "--out", str(out), "--json"]) == 1
    table = Table.model_validate_json(capsys.readouterr().out)
    assert [(cell.state, cell.error) for cell in table.cells] == [("failed", "the disk | is full"), ("finished", None)]
    assert table.rows[0].failed == {0: "the disk | is full"}
    assert _numbers(table)["rows"][1] == _numbers(whole)["rows"][1]
    text = (out / "table.md").read_text()
    assert "| tiny → glare | adapters | failed | failed |" in text
    assert "Failed:\n\n- tiny / glare / adapters / seed 0: the disk | is full" in text
    monkeypatch.setattr("rekindle.matrix.run.pretrain", pretrain)
    assert main(["compare", "--grid", str(grid), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "tiny → glare" in captured.out
    assert "written to" in captured.out
    assert "[1/2] tiny / glare / adapters / seed 0: 3 steps in" in captured.err
    assert _numbers(Table.model_validate_json((out / "table.json").read_text())) == _numbers(whole)


def test_the_command_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(resolved: Any, **options: Any) -> Any:
        return pretrain(resolved, resume=True, watcher=_at(1, 1, _terminate))

    grid, out = folder / "a grid.yaml", folder / "told"
    grid.write_text(yaml.safe_dump(tree(folder), sort_keys=False))
    monkeypatch.setattr("rekindle.matrix.run.pretrain", stopping)
    assert main(["compare", "--grid", str(grid), "--out", str(out)]) == 1
    assert f"continue with: rekindle compare --grid '{grid}' --out {out}" in capsys.readouterr().err
    files = _files(out)
    assert main(["compare", f"--grid={grid}", f"--out={out}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "[1/2] tiny / glare / adapters / seed 0: 3 steps, started, step 1; 0 of 4 measurements" in shown
    assert "[2/2] tiny / dino / adapters / seed 0: 3 steps, to do; 0 of 4 measurements" in shown
    assert "2 cells, 5 of 6 steps to do; nothing was run" in shown
    assert main(["compare", f"--grid={grid}", f"--out={out}", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["steps"] == 6
    assert planned["cells"][0]["key"] == {
        "start": "tiny",
        "method": "glare",
        "framework": "adapters",
        "seed": 0,
        "images": 1.0,
    }
    assert _files(out) == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"frameworks": {"f": {"adapter": {"kind": "lroa"}}}},
            "cell tiny / glare / f / seed 0: adapter.kind = 'lroa': unknown adapter 'lroa'",
        ),
        ({"frameworks": {"f": {"views": {"local_size_px": 12}}}}, "views.local_size_px = 12 is not a multiple of"),
        ({"starts": {"t": "no_such_model"}}, "grid: starts.t: "),
        ({"starts": {"r": {"backbone": "vit:width=16,depth=2,heads=2", "init": "random"}}}, "use --train all"),
        ({"dense_retrieval": {"size_px": 33}}, "dense_retrieval.size_px = 33 is not a multiple"),
        ({"data": "nowhere"}, "nowhere: the folder does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(folder: Path, change: dict[str, Any], message: str) -> None:
    out = folder / "refused"
    with pytest.raises(RequestError) as raised:
        compare_grid(tree(folder, **change), out=str(out))
    assert message in str(raised.value)
    assert not out.exists()


def test_results_of_other_options_are_measured_again(folder: Path, whole: Table) -> None:
    changes = {"dense_retrieval": {"size_px": 32, "memory_size": 20}, "methods": {"glare": {}}}
    before = _files(folder / "whole")
    compare_grid(tree(folder, **changes), out=str(folder / "whole"))
    after = _files(folder / "whole")
    changed = {
        path.relative_to(folder / "whole" / "results").parts[0] for path in before if before[path] != after[path]
    }
    assert changed == {"dense-retrieval"}


def test_a_start_that_changed_under_its_runs_is_refused(tmp_path: Path) -> None:
    grid = tree(tmp_path, methods={"dino": {}}, protocols=["dense-retrieval"], evaluation_seeds=1)
    grid.pop("linear_seg")
    compare_grid(grid)
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "base" / name).unlink()
    (tmp_path / "base").rmdir()
    save_tiny(tmp_path / "base", seed=1)
    with pytest.raises(RequestError, match=r"was trained from a start with hash \w{12}, and .*base now has"):
        compare_grid(grid)


def test_a_run_may_read_its_start_in_another_way(tmp_path: Path) -> None:
    """A register that the runs add is not in the start, and no reason to take the start for another one."""
    methods = {"dino": {"set": {"network": {"add_register": True}}}}
    grid = tree(tmp_path, methods=methods, protocols=["dense-retrieval"], evaluation_seeds=1)
    grid.pop("linear_seg")
    assert compare_grid(grid) == compare_grid(grid)


def test_one_grid_serves_other_images_and_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = folder / "served.yaml", folder / "served"
    grid.write_text(yaml.safe_dump(tree(folder, images="nowhere", data="nowhere"), sort_keys=False))
    dry = ["compare", "--grid", str(grid), "--out", str(out), "--dry-run"]
    assert main(dry) == 2
    assert "nowhere" in capsys.readouterr().err
    own = tree(folder)
    assert main([*dry, "--images", str(own["images"]), "--data", str(own["data"])]) == 0
    assert "2 cells" in capsys.readouterr().out


def test_other_words_beside_the_grid_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--grid", "g.yaml", "--seeds", "3"]) == 2
    assert "--seeds: beside --grid only --out, --images, --data, --json and --dry-run" in capsys.readouterr().err


def test_a_start_that_nothing_is_trained_from_is_measured_as_it_is(folder: Path, whole: Table) -> None:
    """Random weights, for example: a row of their own in the table."""
    arch = "vit:width=16,depth=2,heads=2,patch=8,img=32"
    starts = {"tiny": str(folder / "base"), "random init.": {"backbone": arch, "init": "random"}}
    request = tree(folder, starts=starts, methods={"dino": {}}, skip=[{"start": "random init."}])
    table = compare_grid(request, out=str(folder / "untrained"))
    assert [cell.key.start for cell in table.cells] == ["tiny"] and table.is_complete
    first, second = table.starts
    assert first.scores == whole.starts[0].scores and set(second.scores) == set(first.scores)
    assert "| random init. |" in (folder / "untrained" / "table.md").read_text()
    only = tree(folder, starts=starts, skip=[{"start": "random init."}, {"start": "tiny"}])
    with pytest.raises(RequestError, match="skip leaves no cell"):
        compare_grid(only, out=str(folder / "nothing"))
