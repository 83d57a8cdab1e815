# SPDX-License-Identifier: Apache-2.0
"""`make docs` can fail: faults that are planted in a document are found, and told with their line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle
from rekindle.cli import COMMANDS
from tests.documents.commands import TOUCHES, check_call, check_span
from tests.documents.fences import Fault, blocks_of_code
from tests.documents.reading import DOCUMENTS, ROOT
from tests.documents.run import NOT_RUN, RUN, Runner

HELD = "rekindle pretrain --images a --backbone b --out c"


def faults_of(tmp_path: Path, language: str, text: str) -> list[str]:
    """What is wrong with a document that holds one block."""
    document = tmp_path / "planted.md"
    document.write_text(f"Words.\n\n```{language}\n{text}\n```\n")
    runner = Runner(tmp_path)
    runner.document(document)
    return runner.faults


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{HELD} --bach-size 3", "--bach-size"),
        (f"{HELD} --method glear", "glare"),
        (f"{HELD} --method dino --glare.num-regions 2", "--glare.num-regions"),
        (f"{HELD} --init random", "--train all"),
        ("rekindle pretrain --images a --backbone b", "--out is missing"),
        ("rekindle compare a b --data d --protocol fpm", "fpn"),
        ("rekindle compare a b --protocol knn", "--data is missing"),
        ("rekindle compare --grid nowhere.yaml", "nowhere.yaml"),
        ("rekindle compare --rows a glare/adapters b", "two matrices"),
        ("rekindle evaluate a --data d --protocol knn --fpn.steps 3", "--fpn.steps"),
        ("rekindle study forgetting a --images i --out o", "--tests"),
        ("rekindle adapt a", "adapt"),
        ("rekindle list formulas", "formulas"),
        ("rekindle bench step --peer nobody", "nobody"),
        ('for pack in a; do rekindle extract $pack --images "$missing"; done', "missing: unbound variable"),
        ("python scripts/plot_tables.py --out x.png --colour a=b", "--colour"),
        ("python scripts/plot_everything.py", "plot_everything.py"),
        ("python -m tests.robustness.kills --count many", "many"),
        ("pip install 'rekindle[apps]'", "apps"),
        ("make everything", "everything"),
        ("rekindel pretrain", "rekindel"),
    ],
)
def test_a_command_that_does_not_exist_is_told(tmp_path: Path, text: str, told: str) -> None:
    (fault,) = faults_of(tmp_path, "sh", text)
    assert told in fault and ":3" in fault


def test_commands_that_exist_pass(tmp_path: Path) -> None:
    lines = [
        f"for name in glare dino; do {HELD} --method $name \\\n  --adapter.rank 8; done  # two of them",
        "cat > run.yaml <<EOF\nsteps: 3\nEOF",
        f"{HELD} --config run.yaml",
        "rekindle compare a b --data d --protocol knn fpn --fpn.steps 3",
        "rekindle compare --rows a glare/adapters b glare/adapters",
        "rekindle compare --results a.json b.json --relative-to c",
        "rekindle list methods",
        "make docs PYTHON=python3.12",
        "python scripts/plot_tables.py --out x.png a=b",
        "pip install 'rekindle[app,export]'",
    ]
    assert not faults_of(tmp_path, "sh", "\n".join(lines))


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("", "make docs", "without a language"),
        ("ruby", "puts 1", "ruby is not known"),
        ("json", "{1}", "Expecting property name"),
        ("yaml", "bach_size: 3", "batch_size"),
        ("yaml", "images: i\ndata: d\nstarts: {a: b}\nmethods: {glear: {}}", "glear"),
        ("yaml", "images: i\ndata: d\nstarts: {a: b}\nmethods: {dino: {set: {dino: {regions: 3}}}}", "regions"),
        ("python", "import rekindle\n\nassert rekindle.__version__ == 'other'", 'planted.md", line 6'),
        ("pycon", ">>> 1 + 1\n3", "Expected"),
        ("pycon", ">>> 1 + 1  # doctest: +SKIP\n3", "skipped"),
    ],
)
def test_a_block_that_fails_is_told(tmp_path: Path, language: str, text: str, told: str) -> None:
    (fault,) = faults_of(tmp_path, language, text)
    assert told in fault


def test_blocks_of_a_document_share_their_names_and_text_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "planted.md"
    document.write_text("```python\none = 1\n```\n\n```text\n1 +\n```\n\n```pycon\n>>> one + 1\n2\n```\n")
    runner = Runner(tmp_path)
    runner.document(document)
    assert not runner.faults
    assert runner.counts["text blocks skipped"] == 1


@pytest.mark.parametrize("text", ["rekindle pretrain --bach-size 3", "--adapter.breadth", "rekindle adapt", "make all"])
def test_a_sentence_that_names_what_is_not_there_is_told(text: str) -> None:
    with pytest.raises(Fault):
        check_span(text)


@pytest.mark.parametrize("text", ["rekindle pretrain --probe-keep last", "--adapter.*", "`code`", "--fpn.steps 300"])
def test_a_sentence_that_names_what_is_there_passes(text: str) -> None:
    check_span(text)


def test_the_command_that_runs_documents_fails_with_them(tmp_path: Path) -> None:
    document = tmp_path / "planted.md"
    document.write_text("```sh\nmake everything\n```\n")
    command = [sys.executable, "-m", "tests.documents.run", str(document)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "there is no target everything" in done.stderr


def test_every_command_says_where_it_begins_to_work() -> None:
    assert TOUCHES.keys() == COMMANDS.keys() and NOT_RUN.keys() <= COMMANDS.keys()


def test_a_checked_command_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_call(["rekindle", *HELD.split()[1:]])
    check_call(["rekindle", "report", "nowhere"])
    assert not list(tmp_path.iterdir())


def test_the_documents_whose_commands_run_are_there() -> None:
    assert {ROOT / name for name in RUN} <= {*DOCUMENTS}
    assert all(blocks_of_code(ROOT / name) for name in RUN)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.py"))], ids=lambda p: p.name)
def test_who_starts_sees_the_face_alone(path: Path) -> None:
    """`import rekindle` and its public names; no example reaches into a room."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "".join(block.text for block in blocks_of_code(path) if block.language == "python")
    used = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom)]
    modules = [name.name for node in used if isinstance(node, ast.Import) for name in node.names]
    modules += [node.module or "" for node in used if isinstance(node, ast.ImportFrom)]
    assert [name for name in modules if name.split(".")[0] == "rekindle"] == ["rekindle"]
    reached = {n.attr for n in used if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "rekindle"}
    assert reached and reached <= {*rekindle.__all__}
