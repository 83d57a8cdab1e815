# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys


def test_fabric_loads_without_torchmetrics_which_then_imports_as_ever() -> None:
    code = """
import importlib.util, sys
from rekindle.core.fabric import Fabric
assert not {"torchmetrics", "scipy"} & sys.modules.keys()
from lightning_fabric import Fabric as original
from lightning_fabric.utilities import imports
assert Fabric is original and imports._TORCHMETRICS_GREATER_EQUAL_1_0_0
assert importlib.util.find_spec("torchmetrics").origin.endswith("__init__.py")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
