# SPDX-License-Identifier: Apache-2.0
"""Presets of protocols, and parts of the training images, from the command line, Python and a grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.result import read_result
from rekindle.evaluation.segmentation.options import LinearSegOptions
from rekindle.matrix.grid import check_grid
from rekindle.measuring.measurement import result_config
from rekindle.measuring.options import compare_options, evaluate_options, protocol_options
from tests.evaluation.pictures import COLOURS, write_classes
from tests.evaluation.toy import TINY, save_tiny, write_data


def test_what_is_asked_for_overrides_the_preset() -> None:
    request = evaluate_options({"protocol": "linear-seg", "preset": "paper", "linear_seg": {"steps": 7}})
    assert protocol_options(request, "linear-seg") == LinearSegOptions(
        size_px=512, steps=7, lr=1e-4, warmup_steps=1500, loss_stride=1
    )


def test_a_protocol_that_does_not_know_the_preset_keeps_its_defaults() -> None:
    request = compare_options({"protocol": ["linear-seg", "dense-retrieval"], "preset": "memory-3"})
    assert protocol_options(request, "linear-seg") == LinearSegOptions()
    assert protocol_options(request, "dense-retrieval").model_dump()["memory_size"] == 1024 * 10**3


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(RequestError, match="--preset big: linear-seg know paper, small"):
        evaluate_options({"protocol": "linear-seg", "preset": "big"})


def test_a_grid_takes_presets() -> None:
    grid = check_grid(
        {
            "images": "i",
            "data": "d",
            "out": "o",
            "starts": {"a": "vit_tiny_patch16_224"},
            "methods": {"dino": {}},
            "preset": "paper",
            "linear_seg": {"lr": 0.5},
        }
    )
    measured = protocol_options(grid.measuring(grid.columns()[0]), "linear-seg").model_dump()
    assert (measured["steps"], measured["lr"]) == (40_000, 0.5)


def test_the_command_line_takes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = write_data(tmp_path / "data", num_train=6), save_tiny(tmp_path / "run")
    out = tmp_path / "r.json"
    request = ["evaluate", str(model), "--protocol", "linear-seg", "--data", str(data), "--out", str(out), "--json"]
    request += ["--preset", "paper", "--linear-seg.steps", "3", "--linear-seg.warmup-steps", "1"]
    request += ["--linear-seg.size-px", "16", "--train-fraction", "0.5"]
    assert main(request) == 0
    result = read_result(out)
    assert json.loads(capsys.readouterr().out)["fingerprint"] == result.fingerprint
    assert (result.config["lr"], result.config["steps"], result.config["train_fraction"]) == (1e-4, 3, 0.5)
    assert result.counts["train_images"] == 3
    fold = (tmp_path / "r.train.txt").read_text().split()
    assert len(fold) == 3 and set(fold) < {f"train{i}" for i in range(6)}
    listed = ["--train-list", str(tmp_path / "r.train.txt"), "--out", str(tmp_path / "again.json")]
    short = [a for a in request if a not in ("--train-fraction", "0.5")]
    assert main([*short, *listed]) == 0
    again = read_result(tmp_path / "again.json")
    assert again.metrics == result.metrics
    assert again.fingerprint != result.fingerprint


def test_so_many_images_of_each_class_are_learnt_from(tmp_path: Path) -> None:
    """LOCA, table 2b: ten labelled images of each class."""
    data, model = write_classes(tmp_path / "data", num_train=7), save_tiny(tmp_path / "run")
    folds: list[set[str]] = []
    for number, (shots, seed) in enumerate((("2", "0"), ("3", "0"), ("3", "1"))):
        out = tmp_path / f"{number}.json"
        request = ["evaluate", str(model), "--protocol", "linear-probe", "--data", str(data), "--out", str(out)]
        request += ["--linear-probe.epochs", "6", "--linear-probe.size-px", "16", "--seed", seed]
        assert main([*request, "--train-shots", shots]) == 0
        assert read_result(out).config["train_shots"] == int(shots)
        assert read_result(out).counts["train_images"] == 5 * int(shots)
        folds.append({*out.with_suffix(".train.txt").read_text().split()})
    assert {sum(name.startswith(c) for name in folds[1]) for c in COLOURS} == {3}
    assert folds[0] < folds[1] and folds[1] != folds[2]


@pytest.mark.parametrize(
    ("protocol", "extra", "message"),
    [
        ("knn", ("--train-shots", "8"), "the training split has 7 images of the class 'amber'; lower it"),
        ("knn", ("--train-shots", "2", "--train-fraction", "0.5"), "both say what to learn from; keep one"),
        ("fpn", ("--train-shots", "2"), "have no class for a whole image; use --train-fraction"),
    ],
)
def test_shots_that_cannot_be_had_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str, extra: tuple[str, ...], message: str
) -> None:
    write_data(tmp_path / "masks")
    write_classes(tmp_path / "classes", num_train=7)
    data = tmp_path / ("classes" if protocol == "knn" else "masks")
    request = ["evaluate", str(save_tiny(tmp_path / "run")), "--protocol", protocol, "--data", str(data)]
    assert main([*request, *extra]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_shots_a_fingerprint_is_what_it_was() -> None:
    """Results of before stay comparable."""
    assert "train_shots" not in result_config(evaluate_options({"protocol": "knn"}), "knn")
    assert result_config(evaluate_options({"protocol": "knn", "train_shots": 1}), "knn")["train_shots"] == 1


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    data, model = write_data(tmp_path / "data"), save_tiny(tmp_path / "run")
    request = ["evaluate", str(model), "--data", str(data), "--out", str(tmp_path / "r.json"), "--train-list"]
    assert main([*request, str(tmp_path / "none.txt")]) == 2
    (tmp_path / "empty.txt").write_text("\n")
    assert main([*request, str(tmp_path / "empty.txt")]) == 2


def test_a_random_model_is_measured_alike(tmp_path: Path) -> None:
    """The baseline of relative improvements: its numbers may be compared with those of pretrained models."""
    data, model = write_data(tmp_path / "data"), save_tiny(tmp_path / "run")
    prints: list[str] = []
    for name, extra in ((str(model), ()), (TINY, ("--init", "random"))):
        out = tmp_path / f"{len(prints)}.json"
        request = ["evaluate", name, "--protocol", "multi-label", "--data", str(data), "--multi-label.size-px", "16"]
        assert main([*request, "--out", str(out), *extra]) == 0
        prints.append(read_result(out).fingerprint)
    assert prints[0] == prints[1]
