# SPDX-License-Identifier: Apache-2.0
"""Every table of names: what an entry says is there, and `rekindle list` and help tell it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

from rekindle.adapters import ADAPTERS
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.core.tables import Entry, import_named, import_options
from rekindle.evaluation import PROTOCOLS
from rekindle.exporting import FORMATS
from rekindle.methods import METHODS

TABLES: dict[str, Mapping[str, Entry]] = {
    "methods": METHODS,
    "adapters": ADAPTERS,
    "protocols": PROTOCOLS,
    "formats": FORMATS,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_names_code_that_is_there_and_says_what_it_is(table: str) -> None:
    for name, entry in TABLES[table].items():
        assert callable(import_named(TABLES[table], "entry", name)), name
        assert 10 < len(entry.summary) < 200 and "\n" not in entry.summary, name


@pytest.mark.parametrize("table", ["methods", "protocols"])
def test_the_options_of_an_entry_are_those_that_its_code_reads(table: str) -> None:
    for name in TABLES[table]:
        code = import_named(TABLES[table], "entry", name)
        assert import_options(TABLES[table], "entry", name) is code.Config, name


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    for ask in (import_named, import_options):
        with pytest.raises(RequestError, match="unknown protocol 'knm'; did you mean 'knn'"):
            ask(PROTOCOLS, "protocol", "knm")


@pytest.mark.parametrize("table", TABLES)
def test_the_command_lists_the_table(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", table]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TABLES[table])
    assert all(line.endswith(e.told) for line, e in zip(lines, TABLES[table].values(), strict=True))
    assert main(["list", table, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[table]
    assert told == [{"name": name, "summary": entry.told} for name, entry in TABLES[table].items()]


def test_help_of_the_export_tells_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and entry.told in shown for name, entry in FORMATS.items())


def test_an_unknown_format_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model", "--format", "tim", "--out", "out"]) == 2
    assert "unknown format 'tim'; did you mean 'timm'? Known: hf, mmseg, onnx" in " ".join(
        capsys.readouterr().err.split()
    )


def test_listing_and_the_options_of_a_protocol_and_of_the_default_method_load_no_torch() -> None:
    code = (
        "import sys\nfrom rekindle.cli import main\n"
        f"assert not any(main(['list', table]) for table in {list(TABLES)})\n"
        "from rekindle.core.tables import import_options\nfrom rekindle.evaluation import PROTOCOLS\n"
        "for name, entry in PROTOCOLS.items():\n    entry.options and import_options(PROTOCOLS, 'protocol', name)\n"
        "assert all(entry.options for name, entry in PROTOCOLS.items() if name in ('linear-seg', 'dense-retrieval'))\n"
        "assert not main(['pretrain', '--method', 'glare', '--help'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
