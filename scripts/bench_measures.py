# SPDX-License-Identifier: Apache-2.0
"""What each measure of the GLARE step buys: all of them, and each switched off in turn.

    python scripts/bench_measures.py [--batch-size 4] [--rank 64] [--precision fp32] [--rounds 3]

ViT-S/16, 2 x 224 + 10 x 96 px, K = 8192, the batch in one share, one thread; rounds in turn; medians.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bench.cases import step_case

from rekindle.bench.timing import measure

OFF = {
    "frozen trunk": "AllWeights",
    "class token alone in the last block": "WholeLastBlock",
    "small crops' gradient in advance": "OneGraph",
    "blockwise cross-entropy": "KeptLogits",
}
OFF_LOW = {"plain attention (bf16 on a CPU)": "FusedAttention", "bfloat16 stream (not autocast)": "Autocast"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    asked = parser.parse_args()
    case = step_case(images=asked.batch_size, rank=asked.rank, precision=asked.precision)
    off = OFF | (OFF_LOW if asked.precision == "bf16" else {})
    sides = {"all measures": "rekindle.bench.step:OursGlare"}
    sides |= {f"without {name}": f"tests.bench.measures_off:{side}" for name, side in off.items()}
    whole, *others = measure(sides, case, rounds=asked.rounds)
    added = whole.peak_bytes - whole.baseline_bytes
    for side in (whole, *others):
        print(
            f"{asked.precision} {side.label:<50} {side.median:7.3f} s  {side.median / whole.median:5.2f}x time  "
            f"{(side.peak_bytes - side.baseline_bytes) / added:5.2f}x memory of the step  spread {side.spread:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
