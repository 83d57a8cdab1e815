# SPDX-License-Identifier: Apache-2.0
"""`rekindle evaluate`, `compare`, `extract` and `list` on miniature data."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import timm
from PIL import Image

import rekindle
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.result import read_result, read_rows
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.evaluation.verdict.judging import verdict_of
from rekindle.networks.checkpoints.catalogue import BACKBONES
from tests.evaluation.toy import NAMES, TINY, save_tiny, stripes, write_data, write_item

LINEAR = ["--linear-seg.size-px", "16", "--linear-seg.steps", "20", "--linear-seg.warmup-steps", "2"]
DENSE = ["--dense-retrieval.size-px", "32"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "runs" / "base")


def test_evaluate_writes_the_result_and_its_table(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    assert main(["evaluate", str(model), "--data", str(data), "--out", str(out), *LINEAR, "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert "mIoU" in captured.out
    assert f"written to {out}" in captured.out
    assert "linear-seg" in captured.err
    result = read_result(out)
    assert (result.protocol, result.seed, result.split) == ("linear-seg", 3, "val")
    assert result.config["steps"] == 20
    assert result.config["train_split"] == "train"
    assert 0 <= result.metrics["mIoU"] <= 1
    assert result.per_item is not None
    items, rows = read_rows(out.parent / result.per_item, result)
    assert items == ["val0", "val1", "val2"]
    assert rows.shape == (3, 3 * len(NAMES))


def test_evaluate_json_is_one_object_and_has_a_default_place(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    request = ["evaluate", TINY, "--init", "random", "--protocol", "dense-retrieval", "--data", str(data)]
    assert main([*request, *DENSE, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (written,) = (tmp_path / "results").glob("dense-retrieval-*-s0.json")
    assert printed == json.loads(written.read_text())
    assert printed["config"]["size_px"] == 32


def test_compare_with_itself_finds_a_difference_of_zero(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cmp"
    request = ["compare", str(model), str(model), "--data", str(data), "--seeds", "2", "--out", str(out)]
    assert main([*request, "--resamples", "100", *LINEAR, *DENSE, "--fail-if-worse"]) == 0
    printed = capsys.readouterr().out
    assert f"overall, {model}: cannot judge: cannot judge in linear-seg, dense-retrieval" in printed
    comparison = json.loads((out / "comparison.json").read_text())
    assert [row["protocol"] for row in comparison["rows"]] == ["linear-seg", "dense-retrieval"]
    for row in comparison["rows"]:
        verdict = row["verdict"]
        assert (verdict["verdict"], verdict["difference"]) == ("cannot judge", 0.0)  # of four images
        assert (verdict["low"], verdict["high"]) == (0.0, 0.0)
    (entry,) = comparison["overall"]
    assert entry["model"] == str(model)
    assert entry["overall"]["unjudged"] == ["linear-seg", "dense-retrieval"]
    assert len(comparison["results"]) == 2 * 2 * 2
    drawn = sorted(path.parent.name for path in out.glob("*/confusion.png"))
    assert drawn == [path.stem for path in sorted(out.glob("*-s0.json"))]
    assert len(list(out.glob("*/confusion.csv"))) == 8
    assert len(list(out.glob("linear-seg-*.json"))) == 4
    assert all((out / result["per_item"]).exists() for result in comparison["results"])


def test_compare_exits_with_one_if_worse_was_asked_about(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The better side is made by hand: the verdict's arithmetic has tests of its own."""
    hits = np.random.default_rng(0).integers(0, 3, (1, 40))
    good, bad = (np.stack([up + hits, hits * 0 + 10, hits * 0 + 10], axis=-1) for up in (7, 1))
    arranged = difference_of([good], [bad], MeanIou(class_names=["a"]))
    found = verdict_of(arranged, [good], [bad])
    monkeypatch.setattr("rekindle.measuring.compare.difference_of", lambda *sides, **options: arranged)
    monkeypatch.setattr("rekindle.measuring.compare.verdict_of", lambda *sides, **options: found)
    request = ["compare", str(model), str(model), "--protocol", "dense-retrieval", "--data", str(data)]
    request += ["--seeds", "1", "--out", str(tmp_path / "cmp"), *DENSE]
    assert main(request) == 0
    assert main([*request, "--fail-if-worse"]) == 1


def test_python_calls_take_the_same_names(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"size_px": 32, "memory_size": 30}
    single = rekindle.evaluate(model, "dense-retrieval", data, dense_retrieval=settings)
    pair = rekindle.compare(
        model, [model], data, protocol=["dense-retrieval"], seeds=1, dense_retrieval=settings, resamples=100
    )
    assert pair.results[0].metrics == single.metrics
    with pytest.raises(RequestError, match="unknown option seeed; did you mean seed"):
        rekindle.evaluate(model, "dense-retrieval", data, seeed=1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["evaluate", "--data", "d"], "MODEL is missing"),
        (["evaluate", "m"], "--data is missing"),
        (["evaluate", "m", "--data", "nowhere"], "nowhere: the folder does not exist"),
        (["evaluate", "m", "--protocol", "linear-sge", "--data", "d"], "did you mean 'linear-seg'"),
        (["evaluate", "m", "--protocol", "linear-seg", "--dense-retrieval.size-px", "3"], "dense-retrieval"),
        (["compare", "m", "--data", "d"], "MODEL is missing"),
        (["compare", "m", "n", "--data", "d", "--seeds", "0"], "greater than or equal to 1"),
        (["extract", "m", "--out", "o"], "--images is missing"),
        (["list"], "say what to list: methods, adapters, protocols, formats, backbones, datasets"),
        (["list", "protocol"], "did you mean 'protocols'"),
    ],
)
def test_wrong_requests_exit_with_two_and_say_why(
    request_: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(request_) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_broken_data_is_found_before_any_model_is_loaded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "masks" / "val" / "val1.png").unlink()
    write_item(data, "val", "odd", np.where(stripes() == 2, 9, 0).astype(np.uint8))
    assert main(["compare", "no_such_model", "no_other", "--data", str(data)]) == 2
    message = capsys.readouterr().err
    assert "images without a mask" in message
    assert "class ids out of range" in message
    assert "no_such_model:" not in message


def test_one_image_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path / "data", num_test=1), tmp_path / "cmp"
    assert main(["compare", TINY, TINY, "--init", "random", "--data", str(data), "--out", str(out), *LINEAR]) == 2
    error = capsys.readouterr().err
    assert "linear-seg: there is one item alone to measure (val0)" in error and "features of" not in error
    assert not out.exists()


def test_a_size_that_does_not_fit_is_refused_before_features(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["compare", str(model), str(model), "--data", str(data), "--dense-retrieval.size-px", "33"]
    assert main([*request, *LINEAR]) == 2
    message = capsys.readouterr().err
    assert "dense_retrieval.size_px = 33 is not a multiple of the model's patch size 8; use 32 or 40" in message
    assert "features of" not in message


def test_extract_writes_features_and_lists_what_it_skipped(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "features"
    images.mkdir()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(images / "a.png")
    Image.fromarray(np.full((40, 16, 3), 9, np.uint8)).save(images / "c d.png")
    (images / "b.png").write_bytes(b"no picture")
    request = ["extract", str(model), "--images", str(images), "--out", str(out), "--size-px", "16"]
    assert main([*request, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "images": 2, "skipped": 1}
    table = np.load(out / "features.npz")
    assert [Path(p).name for p in table["paths"]] == ["a.png", "c d.png"]
    assert table["files"].tolist() == ["patches/000000-a.npz", "patches/000002-c-d.npz"]
    patches = np.load(out / table["files"][1])["patches"]
    assert (patches.shape, patches.dtype) == ((5, 2, 16), np.float16)
    assert table["mean"][1] == pytest.approx(patches.astype(np.float32).mean(axis=(0, 1)), abs=1e-3)
    assert table["cls"].shape == (2, 16)
    assert "b.png" in (out / "skipped.txt").read_text()
    assert main(request) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["methods", "protocols", "backbones", "datasets"])
def test_list_prints_a_line_each(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", table]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["list", table, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)[table]
    assert [line.split("  ")[0] for line in lines] == [entry["name"] for entry in entries]


def test_catalogue_agrees_with_timm() -> None:
    for known in BACKBONES:
        config = timm.get_pretrained_cfg(known.name)
        assert config is not None, known.name
        assert known.licence.split(" ")[0] == config.license


@pytest.mark.parametrize("command", ["evaluate", "compare", "extract", "list"])
def test_help_names_the_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "usage: rekindle" in capsys.readouterr().out


def test_help_lists_the_options_of_the_protocols_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--protocol", "linear-seg", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--linear-seg.steps" in shown
    assert "--dense-retrieval" not in shown


def test_extract_draws_pictures(data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features"
    request = ["extract", str(model), "--images", str(data / "images" / "val"), "--out", str(out), "--size-px", "16"]
    assert main([*request, "--pictures", "pca", "clusters", "attention", "film", "--clusters", "2"]) == 0
    names = sorted(path.stem for path in (out / "pca").glob("*.png"))
    assert names == [f"{i:06}-val{i}" for i in range(3)]
    assert sorted(path.name for path in (out / "attention").iterdir()) == names
    for path in [*(out / "pca").glob("*.png"), *(out / "clusters").glob("*.png")]:
        with Image.open(path) as picture:
            assert picture.size == (48, 16)
    assert (out / "attention" / names[0] / "composite.png").exists()
    with Image.open(out / "film.gif") as film:
        assert (getattr(film, "n_frames", 1), film.size) == (3, (48, 16))
    assert "film.gif" in capsys.readouterr().err


def test_pictures_of_attention_need_a_class_token(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = "vit:width=16,depth=2,heads=2,patch=8,img=32,class_token=false"
    request = ["extract", arch, "--init", "random", "--images", str(data / "images" / "val")]
    assert main([*request, "--out", str(tmp_path / "f"), "--size-px", "16", "--pictures", "attention"]) == 2
    assert "--pictures attention shows the attention of the class token" in capsys.readouterr().err


def test_a_video_file_is_read_frame_by_frame(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "film.mp4"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in (30, 120, 210):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    out = tmp_path / "out"
    request = ["extract", str(model), "--images", str(film), "--out", str(out), "--size-px", "16", "--pictures", "film"]
    assert main(request) == 0
    assert [path.name for path in sorted((out / "frames").iterdir())] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(out / "frames" / "00001.png") as frame_file:
        assert abs(float(np.asarray(frame_file).mean()) - 120) < 6
    assert (out / "film.gif").exists()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert main(["extract", str(model), "--images", str(broken), "--out", str(tmp_path / "none")]) == 2
    assert "not readable as a video" in capsys.readouterr().err


def test_targets_stand_beside_the_result(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "prompts.json"
    request = ["evaluate", str(model), "--protocol", "prompted-seg", "--data", str(data), "--out", str(out)]
    assert main([*request, "--prompted-seg.size-px", "32"]) == 0
    header, *lines = (tmp_path / "prompts.targets.csv").read_text().splitlines()
    assert header.startswith("image,category,area_share,prompt_row,prompt_column,IoU>0")
    assert len(lines) == read_result(out).counts["targets"]
