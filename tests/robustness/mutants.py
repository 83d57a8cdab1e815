# SPDX-License-Identifier: Apache-2.0
"""Damaged, lying and odd image files, and a run over a thousand of them.

`python -m tests.robustness.mutants --count 1000 --seed 0 [--out FILE.json]` writes them, trains on the folder in a process of its
own, and compares what the run skipped with what the decoder says of each file alone. It exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rekindle.core.files import printable
from rekindle.data.decoding import UnreadableImage, read_image

BATCH = 16
"""Divides the number of files, so that an epoch leaves none out."""
MAX_PIXELS = 4_000_000
LIMIT_S = 900.0
EXTRA_BYTES = 600 * 2**20
"""Memory that a run over mutants may take beyond a run over the same number of whole images."""
RUN = """
import resource, sys
from rekindle.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Found:
    """What a run over mutants came to.

    Attributes:
        mutants: files written, by kind.
        readable: of them, what the decoder reads.
        skipped: what the run listed as unreadable, each with its reason.
        lost: files that are unreadable and not listed, or listed and readable.
        crashed: whether the run ended otherwise than by itself.
        seconds: of the run.
        extra_bytes: peak memory beyond a run over whole images.
    """

    mutants: dict[str, int]
    readable: int
    skipped: int
    lost: list[str]
    crashed: bool
    seconds: float
    extra_bytes: int

    @property
    def is_clean(self) -> bool:
        """Nothing lost, no crash, within memory."""
        return not self.lost and not self.crashed and self.extra_bytes < EXTRA_BYTES


def whole_files() -> dict[str, bytes]:
    """Images of many kinds, none of them damaged: suffix with a note -> content."""
    draw = np.random.default_rng(0)
    rgb = Image.fromarray(draw.integers(0, 256, (40, 52, 3), dtype=np.uint8))
    grey16 = Image.fromarray(draw.integers(0, 65536, (40, 52), dtype=np.uint16))
    float32 = Image.fromarray(draw.normal(size=(40, 52)).astype(np.float32))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb.rotate(90 * k) for k in range(3)]
    return {
        "a.jpg": _saved(rgb, "JPEG"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": _saved(rgb.convert("L"), "JPEG"),
        "turned.jpg": _saved(rgb, "JPEG", exif=turned.tobytes()),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True),
        "a.png": _saved(rgb, "PNG"),
        "alpha.png": _saved(rgb.convert("RGBA"), "PNG"),
        "greyalpha.png": _saved(rgb.convert("LA"), "PNG"),
        "palette.png": _saved(rgb.quantize(16), "PNG"),
        "one.png": _saved(rgb.convert("1"), "PNG"),
        "deep.png": _saved(grey16, "PNG"),
        "a.tif": _saved(rgb, "TIFF"),
        "cmyk.tif": _saved(rgb.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "deep.tif": _saved(grey16, "TIFF"),
        "float.tif": _saved(float32, "TIFF"),
        "whole numbers.tif": _saved(Image.fromarray(draw.integers(-(2**31), 2**31, (40, 52), dtype=np.int32)), "TIFF"),
        "pages.tif": _saved(rgb, "TIFF", save_all=True, append_images=frames),
        "a.gif": _saved(rgb.quantize(64), "GIF"),
        "film.gif": _saved(rgb.quantize(64), "GIF", save_all=True, append_images=[f.quantize(64) for f in frames]),
        "a.webp": _saved(rgb, "WEBP"),
        "film.webp": _saved(rgb, "WEBP", save_all=True, append_images=frames),
        "a.bmp": _saved(rgb, "BMP"),
        "a.ppm": _saved(rgb, "PPM"),
        "a.tga": _saved(rgb, "TGA"),
        "a.jp2": _saved(rgb, "JPEG2000"),
    }


def mutants(seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Endless (kind, suffix, content)."""
    dice, whole = random.Random(seed), whole_files()
    names = sorted(whole)
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda data: data[: dice.randrange(len(data))],
        "bits": lambda data: _flipped(data, dice, 2 ** dice.randrange(8)),
        "header": lambda data: _flipped(data[:64], dice, 4) + data[64:],
        "hole": lambda data: _overwritten(data, dice, b"\0"),
        "noise": lambda data: _overwritten(data, dice, None),
        "doubled": lambda data: data + data[: dice.randrange(len(data))],
        "swapped": lambda data: data,
        "empty": lambda data: b"",
        "text": lambda data: b"\x89PNG is not what follows\n" * 9,
        "bomb": lambda data: dice.choice(bombs()),
        "whole": lambda data: data,
    }
    while True:
        kind, name = dice.choice(sorted(kinds)), dice.choice(names)
        suffix = Path(dice.choice(names)).suffix if kind == "swapped" else Path(name).suffix
        yield kind, suffix, kinds[kind](whole[name])


def bombs() -> list[bytes]:
    """Small files that say they are 50,000 x 50,000 px, or unpack to a hundred megabytes of text."""
    side = 50_000
    png = _png(side, side, zlib.compress(b"\0" * 100_000))
    text = _png(8, 8, zlib.compress(bytes(200)), [(b"zTXt", b"note\0\0" + zlib.compress(bytes(10**8)))])
    gif = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + bytes(6) + b"," + bytes(4)
    gif += struct.pack("<HH", side, side) + b"\0\2\2\x4c\1\0;"
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    return [png, text, gif, bmp + bytes(46), b"P6 50000 50000 255\n" + bytes(100)]


def write_mutants(folder: Path, count: int, seed: int) -> Counter[str]:
    """Write `count` mutants and what else may lie in a folder; return how many there are of each kind."""
    folder.mkdir(parents=True)
    written: Counter[str] = Counter()
    for number, (kind, suffix, content) in zip(range(count), mutants(seed), strict=False):
        (folder / f"{number:05}-{kind}{suffix}").write_bytes(content)
        written[kind] += 1
    whole = whole_files()["a.png"]
    (folder / "a\nname with a newline.png").write_bytes(whole)
    Path(os.fsdecode(os.fsencode(folder) + b"/not utf-8 \xff\xfe.png")).write_bytes(whole)
    Path(os.fsdecode(os.fsencode(folder) + b"/broken, not utf-8 \xff.png")).write_bytes(b"broken")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "a folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with (folder / "sparse.png").open("wb") as stream:
        stream.truncate(20 * 2**30)
    written["odd files"] = 8
    odd = 7  # of them, files by name
    for number in range(-(count + odd) % BATCH):
        (folder / f"filler-{number:02}.png").write_bytes(whole)
        written["whole"] += 1
    return written


def run_over(folder: Path, out: Path) -> tuple[int, float, int, str]:
    """Train for one pass over a folder; return exit code, seconds, peak bytes, and what it said last."""
    began = time.monotonic()
    command = [sys.executable, "-c", RUN, "pretrain", "--images", str(folder), "--out", str(out), "--init", "random"]
    command += ["--backbone", "vit:width=16,depth=1,heads=1,patch=8,img=16", "--train", "all", "--method", "mae"]
    command += ["--views.global-size-px", "16", "--mae.decoder-width", "16", "--mae.decoder-depth", "1"]
    command += ["--mae.decoder-heads", "1", "--batch-size", str(BATCH), "--epochs", "1"]
    command += ["--data.max-unreadable-fraction", "1", "--data.max-pixels", str(MAX_PIXELS), "--data.num-workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return 124, LIMIT_S, 0, "it hung"
    peaks = done.stdout.split()[-2:]
    peak = max(map(int, peaks)) * 1024 if len(peaks) == 2 and all(map(str.isdigit, peaks)) else 0
    return done.returncode, time.monotonic() - began, peak, done.stderr[-2000:]


def harness(folder: Path, count: int, seed: int) -> Found:
    """Write mutants below `folder`, train on them, and compare."""
    written = write_mutants(folder / "mutants", count, seed)
    plain = folder / "plain"
    plain.mkdir()
    for number in range(60):
        (plain / f"{number}.png").write_bytes(whole_files()["a.png"])
    *_, usual, _ = run_over(plain, folder / "plain-run")
    files = [p for p in sorted((folder / "mutants").iterdir()) if p.name != "circle" and not p.is_dir()]
    expected = {}
    for path in files:
        try:
            read_image(str(path), max_pixels=MAX_PIXELS)
        except UnreadableImage as error:
            expected[printable(str(path))] = printable(error.reason)
    code, seconds, peak, said = run_over(folder / "mutants", folder / "run")
    listed = folder / "run" / "skipped.txt"
    pairs = [line.split("\t", 1) for line in listed.read_text().splitlines()] if listed.exists() else []
    found = {pair[0]: pair[-1] for pair in pairs}
    lost = sorted(set(expected) ^ set(found)) + [name for name in found if found[name] != expected.get(name)]
    if code:
        print(said, file=sys.stderr)
    return Found(dict(written), len(files) - len(expected), len(found), lost, code != 0, seconds, peak - usual)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _flipped(data: bytes, dice: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _overwritten(data: bytes, dice: random.Random, byte: bytes | None) -> bytes:
    start, length = dice.randrange(len(data)), dice.randrange(1, 200)
    length = min(length, len(data) - start)
    return data[:start] + (dice.randbytes(length) if byte is None else byte * length) + data[start + length :]


def _png(width: int, height: int, content: bytes, extra: list[tuple[bytes, bytes]] | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *(extra or []), (b"IDAT", content), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def main() -> int:
    """Run the harness from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = harness(Path(folder), asked.count, asked.seed)
        lost = [name.replace(folder, "") for name in found.lost]
    text = json.dumps({**asdict(found), "lost": lost, "seed": asked.seed}, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
