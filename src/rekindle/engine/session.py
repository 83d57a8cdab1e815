# SPDX-License-Identifier: Apache-2.0
"""Session records: where and with what a run runs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from rekindle.core.processor import instruction_sets

PACKAGES = ("rekindle", "torch", "torchvision", "timm", "numpy", "lightning-fabric")


def session_record(device: torch.device) -> dict[str, Any]:
    """Return command, time, versions and device of this start, as plain values."""
    is_gpu = device.type == "cuda"
    return {
        "command": command_line(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "torch": torch.__version__,  # names the build as well
        },
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_gpu else f"CPU ({platform.machine()})",
        "cuda": torch.version.cuda if is_gpu else None,
        "cores": os.cpu_count(),
        "instruction_sets": list(instruction_sets()),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def command_line(arguments: list[str]) -> str:
    """Return arguments as they can be typed again; the program by its name alone.

    Example:
        >>> command_line(["/usr/bin/rekindle", "pretrain", "--images", "my images"])
        "rekindle pretrain --images 'my images'"

    """
    return shlex.join([Path(arguments[0]).name, *arguments[1:]])
