#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Guess: an import hook that checks shapes decorates each function once, when its module is imported.
# Seen: the type checker is asked to make two checkers for every function, and for a function inside of another one again at
# every call of the outer one; so the cost of checking grows with the calls and not with the functions.
# Why it matters here: tests of training code run with such a hook. Loss functions with small functions inside spend half of a
# tiny training step in making checkers; tests/shapes.py of this project decorates by itself for that reason.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check jaxtyping==0.3.11 numpy==2.4.6
mkdir "$folder/shaped"
cat >"$folder/shaped/__init__.py" <<'PY'
import numpy as np
from jaxtyping import Float


def outer(x: Float[np.ndarray, "n"]) -> float:
    def inner(y: Float[np.ndarray, "n"]) -> float:
        return float(y.sum())

    return inner(x)
PY
cat >"$folder/counting.py" <<'PY'
made = []


def check(function):
    made.append(function.__qualname__)
    return function
PY
cat >"$folder/look.py" <<'PY'
from importlib.metadata import version

import counting
import numpy as np
from jaxtyping import install_import_hook

with install_import_hook("shaped", "counting.check"):
    import shaped
at_import = len(counting.made)
for _ in range(100):
    shaped.outer(np.ones(3))
inner = sum("inner" in name for name in counting.made)
print(f"jaxtyping {version('jaxtyping')}: {at_import} checkers at import for one function; {inner} for an inner one in 100 calls")
assert at_import == 2 and inner == 200, "the behaviour has changed"
PY
cd "$folder" && env/bin/python look.py
