# SPDX-License-Identifier: Apache-2.0
"""`rekindle prompt`, from the command line to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rekindle.cli import main
from rekindle.measuring.looking import Look
from rekindle.prompting.answer import Prompt, mask_of, score_patches
from tests.prompting.made import SIZE, read_picture, write_picture, write_run

RUN = ["--size-px", "64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_picture(tmp_path_factory.mktemp("pictures") / "scene.png")


def test_files_have_the_size_of_the_image_and_hold_the_mask_of_the_scores(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    places = ["--add", "20", "15", "70", "90", "--subtract", "80", "10", "--threshold", "0.3"]
    assert main(["prompt", str(run), "--image", str(picture), *places, *RUN, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    mask = read_picture(out / "mask.png")
    with np.load(out / "prompt.npz") as kept:
        scores, prompts = kept["scores"], kept["prompts"]
    assert prompts.tolist() == [[20, 15, 1], [70, 90, 1], [80, 10, -1]]
    assert np.array_equal(mask == 255, mask_of(scores, SIZE, 0.3)) and set(np.unique(mask)) == {0, 255}
    assert told["size"] == [*SIZE] and told["grid"] == [*scores.shape]
    assert told["share"] == pytest.approx((mask == 255).mean(), abs=1e-6)
    assert all(read_picture(out / name).shape == (*SIZE, 3) for name in ("map.png", "contour.png"))


def test_smooth_edges_and_another_size_change_the_mask(run: Path, picture: Path, tmp_path: Path) -> None:
    masks = []
    for number, more in enumerate([RUN, [*RUN, "--edges", "smooth"], ["--size-px", "96"]]):
        out = tmp_path / str(number)
        assert main(["prompt", str(run), "--image", str(picture), "--add", "20", "15", *more, "--out", str(out)]) == 0
        masks.append(read_picture(out / "mask.png"))
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add", "500", "3"], "lies outside the image; it has rows 0 to 95 and columns 0 to 127"),
        (["--subtract", "5", "3"], "no place to look for"),
        ([], "no place to look for"),
        (["--add", "5", "3", "--threshold", "1"], "threshold"),
        (["--add", "5", "3", "--max-pixels", "100"], "exceed"),
        (["--add", "5", "3", "--size-px", "20000"], "more than 16384"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert main(["prompt", str(run), "--image", str(picture), *arguments, "--out", str(out)]) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_full_folder_is_left_alone(run: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"mine")
    assert main(["prompt", str(run), "--image", str(picture), "--add", "5", "3", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "mask.png").read_bytes() == b"mine"


def test_places_are_counted_in_the_upright_image() -> None:
    """A prompt's patch depends on the size that it is counted in, not on what the model got."""
    tokens = np.eye(4, dtype=np.float32).reshape(2, 2, 4)
    seen = Look(np.zeros((8, 8, 3), np.uint8), tokens, None)
    assert score_patches(seen, [Prompt(60, 10)], (100, 200))[1, 0] == 1.0
    assert score_patches(seen, [Prompt(60, 10)], (200, 20))[0, 1] == 1.0
