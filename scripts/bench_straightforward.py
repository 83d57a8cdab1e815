# SPDX-License-Identifier: Apache-2.0
"""Our step against the straightforward one that the tests hold it to: two whole models, all gradients, heads everywhere.

    python scripts/bench_straightforward.py [--batch-size 2] [--rank 64] [--rounds 5] [--method glare] [--out FILE.json]

One thread; rounds in turn; quoted are ratios of medians to the straightforward step in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bench.cases import step_case

from rekindle.bench.timing import measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", choices=["glare", "dino"], default="glare")
    parser.add_argument("--out", type=Path, help="JSON file of what is printed")
    asked = parser.parse_args()
    case = step_case(images=asked.batch_size, rank=asked.rank)
    name = asked.method.capitalize()
    base, kept = None, []
    for precision in ("fp32", "bf16"):
        sides = {
            "straightforward": f"tests.bench.straightforward_side:Straightforward{name}",
            "ours": f"rekindle.bench.step:Ours{name}",
        }
        for side in measure(sides, {**case, "precision": precision}, rounds=asked.rounds):
            base = base or side.median
            kept.append(
                {"precision": precision, "side": side.label, "seconds": side.seconds, "ratio": base / side.median}
                | {"peak_bytes": side.peak_bytes, "flops": side.facts["flops"]}
            )
            print(
                f"{precision} {side.label:<16} {side.median:7.3f} s  {base / side.median:5.2f}x  spread {side.spread:.0%}  "
                f"peak {side.peak_bytes / 2**30:.2f} GiB  {side.facts['flops'] / asked.batch_size / 1e9:.0f} GFLOP/image",  # type: ignore[operator]
                flush=True,
            )

    if asked.out:
        asked.out.write_text(json.dumps({"case": case, "sides": kept}) + "\n")


if __name__ == "__main__":
    main()
