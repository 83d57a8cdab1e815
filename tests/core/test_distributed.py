# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rekindle.core.distributed import all_rows, all_sum_with_gradient

TWO = """
import torch
import torch.distributed as dist
from rekindle.core.distributed import all_rows, all_sum_with_gradient

dist.init_process_group("gloo")
own = torch.full((2, 3), float(dist.get_rank() + 1))
rows, first = all_rows(own)
assert rows[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0] and first == 2 * dist.get_rank()
assert torch.equal(rows[first : first + 2], own)
value = own.requires_grad_()
total = all_sum_with_gradient(value)
assert torch.equal(total, torch.full((2, 3), 3.0))
(total * (dist.get_rank() + 1)).sum().backward()
assert torch.equal(value.grad, torch.full((2, 3), 3.0))  # 1 of the first process's loss and 2 of the second's
dist.destroy_process_group()
"""


def test_alone_they_are_the_identity() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    found, first = all_rows(rows)
    assert torch.equal(found, rows) and first == 0 and not found.requires_grad
    assert all_sum_with_gradient(rows) is rows


@pytest.mark.slow
def test_two_processes_see_each_others_rows_and_gradients(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    result = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
