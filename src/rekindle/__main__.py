# SPDX-License-Identifier: Apache-2.0
"""`python -m rekindle`: the command, where its script is not on the path."""

from __future__ import annotations

import sys

from rekindle.cli import main

if __name__ == "__main__":
    sys.exit(main())
