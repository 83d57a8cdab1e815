# SPDX-License-Identifier: Apache-2.0
"""Nothing leaves the machine unless a name was given that needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.engine.running import write_images
from tests.evaluation.toy import write_data

GUARD = """
import json, socket, sys

class Blocked(BaseException):
    pass

def refuse(*arguments, **names):
    raise Blocked(f"the network was asked for: {arguments[:2]}")

connect = socket.socket.connect
def local(self, address):
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

socket.socket.connect = socket.socket.connect_ex = local
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from rekindle.cli import main
for line in json.loads(sys.argv[1]):
    try:
        print(line[0], main(line), flush=True)
    except Blocked as error:
        print(line[0], error, flush=True)
"""
TINY = "vit:width=32,depth=2,heads=2,patch=8,img=32"


def guarded(lines: list[str]) -> list[str]:
    """What commands end with in a process where every connection is an error that nothing catches: a line for each."""
    split = json.dumps([line.split() for line in lines])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GUARD, split]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    names = {line.split()[0] for line in lines}
    ends = [line for line in done.stdout.splitlines() if line.split(" ")[0] in names]
    assert len(ends) == len(lines), done.stderr[-2000:]
    return ends


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What five commands on local files end with, and then two that name a model of the hub, in one process."""
    folder = tmp_path_factory.mktemp("guarded")
    images, data, run = write_images(folder / "images"), write_data(folder / "data"), folder / "run"
    tiny = f"--backbone {TINY} --init random --train all --method mae --batch-size 4 --steps 2 "
    tiny += "--views.global-size-px 32 --views.num-local 0 --mae.decoder-width 16 --mae.decoder-heads 2"
    lines = [
        f"pretrain --images {images} --out {run} {tiny}",
        f"evaluate {run} --protocol dense-retrieval --data {data} --dense-retrieval.size-px 32 --out {folder / 'a.json'}",
        f"check --images {images}",
        f"export {run} --format timm --out {folder / 'exported'}",
        f"report {run}",
    ]
    names = ("vit_small_patch16_224.dino", "hf-hub:owner/name")
    return guarded(lines + [f"pretrain --images {images} --backbone {name} --out {folder / 'named'}" for name in names])


def test_training_judging_and_reporting_on_local_files_ask_for_no_network(ends: list[str]) -> None:
    assert ends[:5] == ["pretrain 0", "evaluate 0", "check 0", "export 0", "report 0"]


def test_a_name_that_needs_the_hub_does_ask(ends: list[str]) -> None:
    assert len(ends) == 7
    assert all("the network was asked for" in end for end in ends[5:]), ends
