# SPDX-License-Identifier: Apache-2.0
"""Optional packages of the extra `export`."""

from __future__ import annotations

import importlib.util

from rekindle.core.errors import RequestError


def needed(package: str, wanted_by: str) -> None:
    """Raise RequestError, with the command that installs it, if a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise RequestError(f'{wanted_by} needs the package {package}: pip install "rekindle[export]"')
