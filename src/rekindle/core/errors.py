# SPDX-License-Identifier: Apache-2.0
"""The errors that a user may see. Each message says what, where, what is allowed, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RekindleError(Exception):
    """The run failed; the command line prints the message without a trace and exits with code 1."""

    exit_code = 1


class RequestError(RekindleError):
    """The request was wrong (an option, a path, a name); the command line exits with code 2."""

    exit_code = 2


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """Return the error for a name that a table does not hold, with the nearest known name suggested.

    Example:
        >>> str(unknown_name("method", "glaer", ["dino", "glare"]))
        "unknown method 'glaer'; did you mean 'glare'? Known: dino, glare"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    return RequestError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}")
