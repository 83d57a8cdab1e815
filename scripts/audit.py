# SPDX-License-Identifier: Apache-2.0
"""Look the pinned requirements up among known vulnerabilities, with pip-audit: `make audit`.

Exit code 1 where one is known; 0 where none is, and where nothing could be asked (offline), which is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "dev.txt"
COMMAND = [
    "uv",
    "tool",
    "run",
    "pip-audit",
    "--disable-pip",
    "--require-hashes",
    "--progress-spinner",
    "off",
    "--format",
    "json",
]


def verdict(found: dict[str, Any]) -> tuple[int, str]:
    """Return the exit code and what to say of pip-audit's report."""
    packages = found["dependencies"]
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    known = [(p, v) for p in packages for v in p.get("vulns", [])]
    if packages and len(skipped) == len(packages):
        return 0, f"skipped: nothing is known here about any of {len(packages)} packages; is this machine offline?"
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version yet'}"
        for p, v in known
    ]
    told = f"{len(packages) - len(skipped)} of {len(packages)} packages looked up, {len(known)} known vulnerabilities"
    if skipped:
        lines.append(f"not looked up: {', '.join(skipped)}")
    return int(bool(known)), "\n".join([told, *lines])


def main() -> int:
    """Ask, and tell."""
    tool = Path(sys.executable).with_name(COMMAND[0])
    command = [str(tool), *COMMAND[1:], "--requirement", str(REQUIREMENTS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        print("skipped: no answer within 300 s; is this machine offline?")
        return 0
    except ValueError:
        print(f"skipped: pip-audit gave no report ({done.stderr.strip()[-300:] or 'no message'})")
        return 0
    code, told = verdict(found)
    print(told)
    return code


if __name__ == "__main__":
    sys.exit(main())
