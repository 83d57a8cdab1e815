# SPDX-License-Identifier: Apache-2.0
"""Bytes of tensors that are alive at a time in a GLARE step, counted, beside what `rekindle.pretraining.memory` says.

    PYTHONPATH=. python scripts/memory_cells.py            # the cells of ViT-S and ViT-B, into results/performance

One image a step, adapters of rank 64 in all blocks, 1,024 prototypes, ten small views. A step is counted without being computed
(`tests.bench.uncomputed`). A cell that the file has counted already is not counted again: take it out of the file for that.
"""

from __future__ import annotations

import itertools
import json
import weakref
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rekindle.pretraining.advice import advise
from rekindle.pretraining.options import resolve

OUT = Path(__file__).parent.parent / "results" / "performance" / "memory-table.json"
MODELS = {
    "ViT-S": "vit:width=384,depth=12,heads=6,patch=16,img=224,layer_scale=true",
    "ViT-B": "vit:width=768,depth=12,heads=12,patch=16,img=224,layer_scale=true",
    "ViT-L": "vit:width=1024,depth=24,heads=16,patch=16,img=224,layer_scale=true",
    "ViT-H+": "dinov3:width=1280,depth=32,heads=20,patch=16,registers=4,swiglu=true,hidden=5120,layer_scale=true",
}
VIEWS = ((224, 96), (448, 192))
SETTINGS: tuple[tuple[str, str, int | None, bool], ...] = (
    ("fp32", "fp32", None, False),
    ("bf16", "bf16", None, False),
    ("bf16, 8 bit", "bf16", 8, False),
    ("bf16, 4 bit", "bf16", 4, False),
    ("bf16, 4 bit, recomputed", "bf16", 4, True),
)
"""Name, precision, bits of the trunk, recomputation."""


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operations have given and something still holds; `peak`, the most at a time."""

    def __init__(self, standing: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, Any] = {}
        self.now = self.peak = 0
        for tensor in standing:
            self._count(tensor)
        self.standing = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return found

    def _count(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or storage.device.type == "meta":
            return

        def gone(_: Any, key: int = key, size: int = size) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def count(cell: dict[str, Any]) -> dict[str, int]:
    """Count the second step of one cell."""
    from tests.bench.uncomputed import Uncomputed

    from rekindle.adapters.saved import load_backbone
    from rekindle.bench.stage import fixed_views
    from rekindle.core.fabric import Fabric
    from rekindle.engine.step import Stepper
    from rekindle.networks.backbone import Backbone
    from rekindle.pretraining.machine import machine_of
    from rekindle.pretraining.run import build_method
    from rekindle.pretraining.steps import plan_steps

    resolved = resolve({}, cell["options"], file_name="cell")
    options = resolved.options
    backbone, _ = load_backbone(options.backbone, options.network, init="random", drop_path=options.network.drop_path)
    machine = machine_of(options)
    method, _ = build_method(resolved, backbone, machine)
    for one in (m for m in method.modules() if isinstance(m, Backbone)):
        one.skip_dropped = False
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    stepper = Stepper(method, fabric, options.optim, precision=options.precision)
    plan = plan_steps(options, 100 * options.batch_size, machine)
    stage = {"seed": 0, "batch_size": options.batch_size, "height": 720, "width": 960, "device": "cpu"}
    batch = fixed_views(stage | {"views": options.views.model_dump()})
    size = options.batch_size // plan.num_slots

    def step(number: int) -> None:
        parts = (batch.images(slice(start, start + size)) for start in range(0, len(batch), size))
        stepper.step(number, plan, lambda: next(parts))

    with Uncomputed():
        step(50)
        states = [t for state in stepper.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        views = [batch.global_views.pixels, *([] if batch.local_views is None else [batch.local_views.pixels])]
        with Alive([*stepper.standing, *stepper.method.buffers(), *states, *views]) as alive:
            step(51)
    return {"peak": alive.peak, "standing": alive.standing}


Cell = dict[str, Any]


def cells() -> dict[tuple[str, str, str], Cell]:
    """Every cell, by model, views and setting: options of a run, and what the model of memory says."""
    found: dict[tuple[str, str, str], Cell] = {}
    for (model, grammar), (large, small) in itertools.product(MODELS.items(), VIEWS):
        for told, precision, bits, again in SETTINGS:
            options: dict[str, Any] = {
                "method": "glare",
                "backbone": grammar,
                "batch_size": 1,
                "accelerator": "cpu",
                "precision": precision,
                "epochs": 100,
                "adapter": {"rank": 64},
                "glare": {"num_prototypes": 1024},
                "views": {"global_size_px": large, "local_size_px": small},
                "engine": {"micro_batch_size": 1, "trunk_bits": bits, "recompute_blocks": again},
            }
            memory = advise(resolve({}, options, file_name="cell"), 1.0).as_asked.memory
            found[model, f"{large}/{small}", told] = {
                "options": options,
                "tensor_mib": round(memory.tensors / 2**20, 1),
                "whole_run_mib": round(memory.total / 2**20, 1),
                "mib": {name: round(value / 2**20, 1) for name, value in memory.to_dict().items()},
            }
    return found


def main() -> None:
    before = json.loads(OUT.read_text())["models"] if OUT.exists() else {}
    models: dict[str, dict[str, dict[str, Cell]]] = {}
    for (model, views, told), cell in cells().items():
        counted = before.get(model, {}).get(views, {}).get(told, {}).get("counted_mib")
        if counted is None and model in ("ViT-S", "ViT-B"):
            counted = round(count(cell)["peak"] / 2**20, 1)
        if counted is not None:
            cell |= {"counted_mib": counted, "error": round(cell["tensor_mib"] / counted - 1, 3)}
            print(
                f"{model} {views} {told}: {cell['tensor_mib']} MiB, counted {counted}: {cell['error']:+.1%}", flush=True
            )
        models.setdefault(model, {}).setdefault(views, {})[told] = cell
    OUT.write_text(json.dumps({"told": __doc__, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
