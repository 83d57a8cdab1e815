# SPDX-License-Identifier: Apache-2.0
"""What one GPU makes of Rekindle, in at most ten minutes, as one JSON file: speed, memory, kernels, resume, equality of bits.

    python scripts/gpu_check.py --out gpu-check.json            # `make gpu-check`; needs a GPU
    python scripts/gpu_check.py --out short.json --short        # a tiny network on the CPU: the same sections, in seconds

Every section runs in a process of its own, forked before a GPU was touched, and has a share of the time: one that fails or hangs
leaves the others alone. A section that its time did not reach is `not run`, with the reason. The exit code is 0 if no section
failed and none was cut off. Times come from the sides of `rekindle bench`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rekindle.bench.limit import MatrixProduct
from rekindle.bench.options import BenchOptions
from rekindle.bench.running import build_case, compare_sides, describe_machine, run_bench
from rekindle.bench.stage import case_device, fixed_views
from rekindle.bench.step import FIRST_STEP, OursDino, OursGlare, build_stepper, one_step
from rekindle.bench.synthetic import write_images
from rekindle.bench.table import LIMIT
from rekindle.bench.timing import SideTimes
from rekindle.bench.views import OursDevice
from rekindle.networks.compiling import compile_blocks
from rekindle.pretraining.options import resolve
from rekindle.pretraining.recipes import with_recipe
from rekindle.pretraining.run import pretrain

Case = dict[str, object]
Found = dict[str, object]
SECONDS = 600.0
MODELS = {
    "ViT-S/16": ("vit:width=384,depth=12,heads=6,patch=16,img=224", 96),
    "ViT-S/14": ("vit:width=384,depth=12,heads=6,patch=14,img=224", 98),
    "ViT-B/16": ("vit:width=768,depth=12,heads=12,patch=16,img=224", 96),
}
"""Model -> its architecture, and the side of the small views."""
TINY = {"tiny": ("vit:width=32,depth=2,heads=2,patch=8,img=32", 16)}
SIDES: Mapping[str, type[OursDino] | type[OursGlare]] = {"dino": OursDino, "glare": OursGlare}
LARGE_BATCH, RECIPE_IMAGES, KERNELS = 512, 300, 10
STEPS, KILLED_AT = 4, 3
PRODUCTS = {"cuda": 50, "cpu": 2}
"""A round's, by device: a CPU needs a second for fifty."""


@dataclass(frozen=True)
class Section:
    """Something to find out.

    Attributes:
        find: does it, in a process of its own.
        share: of all the time, at most.
        left_out: why it is not done in this form of the check; empty where it is.
    """

    find: Callable[[], Found]
    share: float
    left_out: str = ""


def sections(*, short: bool) -> dict[str, Section]:
    """Name -> section, the most wanted first."""
    models = TINY if short else MODELS
    first = next(iter(models))
    batches = {"recipe": _recipe_batch()} if not short else {"recipe": 4}
    batches |= {} if short else {str(LARGE_BATCH): LARGE_BATCH}
    found = {"machine": Section(partial(machine, short=short), 0.03)}
    for model in models:
        for method in SIDES:
            for name, size in batches.items():
                find = partial(speed, _case(model, size, short=short), method)
                found[f"step {method} {model} batch {name}"] = Section(find, 0.08)
    case = _case(first, max(batches.values()), short=short)
    small = _case(first, batches["recipe"], short=short)
    no_compiler = "a CPU's compiler takes longer than all other sections; tests/networks compile" if short else ""
    found |= {
        "kernels": Section(partial(kernels, small), 0.06),
        "compile": Section(partial(compiled, small), 0.2, no_compiler),
        "resume": Section(partial(resumed, short=short), 0.1),
        "bits": Section(partial(bits, small), 0.06),
        "views": Section(partial(views, case), 0.06),
        "t100": Section(partial(t100, short=short), 0.25, "starts three processes, a test has it" if short else ""),
    }
    return {name: replace(one, share=1.0) for name, one in found.items()} if short else found


def machine(*, short: bool) -> Found:
    """What the figures depend on."""
    found: Found = dict(describe_machine(torch.get_num_threads()))
    if short:
        return found
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "bf16": torch.cuda.is_bf16_supported(),
    }


def speed(case: Case, method: str) -> Found:
    """Images a second of a step, its peak memory, and the share of the machine's matrix products that it reaches."""
    limit, ours = (
        _timed(LIMIT, MatrixProduct(case, PRODUCTS[str(case["device"])])),
        _timed(f"rekindle {method}", SIDES[method](case)),
    )
    row = next(row for row in compare_sides([ours, limit]) if row.measured is ours)
    facts = {name: value for name, value in ours.facts.items() if name not in ("losses", "torch")}
    return {
        "images_per_s": ours.images_per_s,
        "limit_share": row.limit_share,
        "seconds": list(ours.seconds),
        "batch": case["batch_size"],
        "precision": case["precision"],
        **facts,
    }


def kernels(case: Case) -> Found:
    """The ten operations of a GLARE step that take the device's time, with their share of it."""
    on_gpu = case_device(case).type == "cuda"
    side = OursGlare(case)
    side.run()
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        side.run()
    took = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in profile.key_averages()}
    calls = {e.key: e.count for e in profile.key_averages()}
    whole = sum(took.values())
    most = sorted(took, key=lambda key: -took[key])[:KERNELS]
    return {
        "most": [{"name": key, "share": took[key] / whole, "calls": calls[key]} for key in most],
        "total_ms": whole / 1e3,
    }


def compiled(case: Case) -> Found:
    """A GLARE step with blocks through torch.compile, and as they are."""
    plain = _timed("as it is", OursGlare(case))
    side = OursGlare(case)
    began = time.perf_counter()
    failure = compile_blocks(side._stepper.method, case_device(case))
    if failure is not None:
        raise RuntimeError(failure)
    side.run()
    first = time.perf_counter() - began
    fast = _timed("compiled", side)
    return {
        "images_per_s": plain.images_per_s,
        "compiled_images_per_s": fast.images_per_s,
        "faster": plain.median / fast.median,
        "until_first_step_s": first,
    }


def bits(case: Case) -> Found:
    """Two equal runs of two steps under torch's deterministic algorithms, compared bit by bit."""
    torch.use_deterministic_algorithms(True)
    runs = []
    for _ in range(2):
        stepper, _, plan = build_stepper(case, "glare")
        batch = fixed_views(case).images(slice(0, plan.batch_size))
        losses = [one_step(stepper, plan, batch, FIRST_STEP + number) for number in range(2)]
        runs.append((losses, [p.detach().cpu() for p in stepper.trained]))
    (losses, weights), (again, others) = runs
    if losses != again or not all(map(torch.equal, weights, others)):
        raise RuntimeError(f"two equal runs differ: losses {losses} and {again}")
    return {"losses": losses, "tensors": len(weights)}


def views(case: Case) -> Found:
    """Views made on the device from decoded images, and how many a second."""
    side = _timed("views", OursDevice(case | {"num_images": case["batch_size"]}))
    return {"images_per_s": side.images_per_s, "seconds": list(side.seconds), **side.facts}


def t100(*, short: bool) -> Found:
    """Minutes of 100 epochs of 2,522 images (GLARE, table 8), from two short ones: `rekindle bench t100` in short form."""
    assert not short
    asked = {"num_images": 2 * LARGE_BATCH, "batch_size": LARGE_BATCH, "rounds": 1, "warmup": 0, "precision": "bf16"}
    result = run_bench(BenchOptions(name="t100", accelerator="gpu", **asked), lambda line: None)  # type: ignore[arg-type]
    scale = 2522 / (2 * LARGE_BATCH)
    return {f"{row.measured.label}, minutes": row.measured.median * scale / 60 for row in result.rows}


def resumed(*, short: bool) -> Found:
    """A run that is killed at its third step and goes on, beside one that nobody disturbed: the same numbers, bit by bit."""
    with tempfile.TemporaryDirectory(prefix="rekindle-check-") as scratch:
        images = write_images(Path(scratch, "images"), 8 if short else 64, height=64, width=64, seed=0)
        whole, cut = Path(scratch, "whole"), Path(scratch, "cut")
        ends = [
            _in_a_process(partial(_train, images, out, short=short, kill=kill, resume=resume))
            for out, kill, resume in ((whole, False, False), (cut, True, False), (cut, False, True))
        ]
        if ends != [0, -signal.SIGKILL, 0]:
            raise RuntimeError(f"exit codes {ends}, expected [0, {-signal.SIGKILL}, 0]")
        logs = [_log(out) for out in (whole, cut)]
        hashes = [json.loads((out / "model.json").read_text(encoding="utf-8"))["model_hash"] for out in (whole, cut)]
    if logs[0] != logs[1] or hashes[0] != hashes[1]:
        raise RuntimeError(f"a resumed run differs: losses {[[line['loss'] for line in log] for log in logs]}")
    return {
        "steps": STEPS,
        "killed_at": KILLED_AT,
        "losses": [line["loss"] for line in logs[0]],
        "model_hash": hashes[0],
    }


class _Killer:
    """A watcher that kills its process at a step, before that step's checkpoint is written."""

    def __init__(self, at: int | None) -> None:
        self._at = at

    def message(self, text: str) -> None: ...

    def step(self, report: Any) -> None:
        if report.step == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None: ...


def _train(images: Path, out: Path, *, short: bool, kill: bool, resume: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    arch, local = next(iter((TINY if short else MODELS).values()))
    asked = {
        "images": str(images),
        "out": str(out),
        "backbone": arch,
        "init": "random",
        "train": "all",
        "steps": STEPS,
        "batch_size": 4 if short else 32,
        "accelerator": "cpu" if short else "gpu",
        "views": {"global_size_px": 32 if short else 224, "local_size_px": local, "num_local": 2},
        "data": {"num_workers": 0},  # a worker outlives a killed run by seconds, and holds its folder
        "engine": {"checkpoint_steps": 1, "log_steps": 1, "tensorboard": False},
        "glare": {"num_prototypes": 64 if short else 8192},
    }
    pretrain(resolve({}, asked), resume=resume, watcher=_Killer(KILLED_AT if kill else None))


def _log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "speed"} for line in lines]


def _in_a_process(work: Callable[[], None]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def _timed(label: str, side: Any, rounds: int = 5) -> SideTimes:
    """One warm-up and some rounds, in this process."""
    side.run()
    seconds, images = [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        images = side.run()
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > 10 and len(seconds) > 1:
            break
    return SideTimes(label, tuple(seconds), images, 0.0, 0, 0, side.facts())


def _case(model: str, batch: int, *, short: bool) -> Case:
    arch, local = (TINY if short else MODELS)[model]
    options = BenchOptions(
        name="step",
        backbone=arch,
        batch_size=batch,
        precision="fp32" if short else "bf16",
        num_prototypes=64 if short else 8192,
        accelerator="cpu",  # asked of no GPU here: it is touched in the sections' processes alone
        **({"height": 64, "width": 64, "rank": 4} if short else {}),
    )
    case = build_case(options)
    sizes = {"global_size_px": 32 if short else 224, "local_size_px": local} | ({"num_local": 2} if short else {})
    case["views"] = {**case["views"], **sizes}  # type: ignore[dict-item]
    case["device"] = "cpu" if short else "cuda"
    return case


def _recipe_batch() -> int:
    chosen = with_recipe(resolve({}, {"accelerator": "cpu"}), RECIPE_IMAGES)
    return chosen.options.batch_size


def _report(pipe: Connection, find: Callable[[], Found]) -> None:
    try:
        with redirect_stdout(sys.stderr):
            pipe.send({"state": "passed", "found": find()})
    except Exception as error:
        lines = "".join(traceback.format_exception(error, limit=-4))
        pipe.send({"state": "failed", "error": f"{type(error).__name__}: {error}", "trace": lines})


def run_section(section: Section, limit_s: float) -> dict[str, Any]:
    """Find it in a process of its own, or say why not."""
    if section.left_out:
        return {"state": "left out", "reason": section.left_out}
    if limit_s <= 0:
        return {"state": "not run", "reason": "the time of the whole check was used up"}
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_report, args=(theirs, section.find))
    began = time.monotonic()
    process.start()
    theirs.close()
    try:
        told: dict[str, Any] = (
            ours.recv()
            if ours.poll(limit_s)
            else {"state": "not run", "reason": f"not done within its {limit_s:.0f} s"}
        )
    except EOFError:
        process.join()
        told = {"state": "failed", "error": f"its process ended with code {process.exitcode}"}
    if process.is_alive() and told["state"] == "not run":
        process.kill()
    process.join()
    return told | {"seconds": round(time.monotonic() - began, 2)}


def check(chosen: Mapping[str, Section], seconds: float) -> dict[str, Any]:
    """Run the sections in order; each has its share, and no more than what is left."""
    began = time.monotonic()
    results: dict[str, Any] = {}
    for name, section in chosen.items():
        left = seconds - (time.monotonic() - began)
        results[name] = run_section(section, min(section.share * seconds, left))
        told = results[name]
        print(f"{name}: {told['state']} {told.get('error') or told.get('reason') or ''}".rstrip(), file=sys.stderr)
    passed = all(told["state"] in ("passed", "left out") for told in results.values())
    took = time.monotonic() - began
    rates = [t["found"]["images_per_s"] for t in results.values() if "images_per_s" in t.get("found", {})]
    return {
        "passed": passed,
        "seconds": round(took, 1),
        "median_images_per_s": statistics.median(rates) if rates else None,
        "sections": results,
    }


def main(arguments: list[str]) -> int:
    """Check, write the file, and say whether all passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--short", action="store_true", help="a tiny network on the CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all sections together")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    result = {"form": "short" if asked.short else "gpu", **check(sections(short=asked.short), asked.seconds)}
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
