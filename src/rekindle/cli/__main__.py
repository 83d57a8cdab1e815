# SPDX-License-Identifier: Apache-2.0
"""`python -m rekindle.cli`."""

from rekindle.cli import main

raise SystemExit(main())
