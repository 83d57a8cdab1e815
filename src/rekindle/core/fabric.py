# SPDX-License-Identifier: Apache-2.0
"""Lightning Fabric, imported without what it only asks for its version.

lightning_fabric imports the whole of torchmetrics, and scipy.signal with it, to compare one version number, for a
feature that is not used here: a quarter of the time that all imports of a run take. While it is imported, an empty
module of that name stands in; the version then comes from the installed package's record. Afterwards torchmetrics imports
as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _version_only(name: str) -> Iterator[None]:
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


with _version_only("torchmetrics"):
    from lightning_fabric import Fabric as Fabric
