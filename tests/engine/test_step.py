# SPDX-License-Identifier: Apache-2.0
"""What a step does besides computing a loss: low precision, short memory, recomputing, compiling."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RekindleError
from rekindle.core.progress import Progress
from rekindle.core.short_memory import is_out_of_memory
from rekindle.engine.precision import ComputeCopies
from rekindle.methods.glare import Glare
from tests.engine.running import Recorder, assert_same_training, checkpoint, metrics, run, stop_after, write_images
from tests.methods.scene import tiny_batch, tiny_glare

START = Progress(0, 10)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def _gradients(method: Glare) -> dict[str, Tensor]:
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def test_bfloat16_copies_give_nearly_the_float32_loss_and_float32_gradients() -> None:
    exact, low, batch = tiny_glare("all").eval(), tiny_glare("all").eval(), tiny_batch(4)
    expected = exact(batch, START)
    expected.total.backward()
    found = ComputeCopies(low, torch.bfloat16).call(low, lambda: low(batch, START))
    found.total.backward()
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, expected.total, rtol=0.02, atol=0.0)
    assert not torch.equal(found.total, expected.total)
    theirs = _gradients(exact)
    assert _gradients(low).keys() == theirs.keys()
    for name, gradient in _gradients(low).items():
        assert gradient.dtype == torch.float32, name
    flat, other = (torch.cat([g.flatten() for g in _gradients(m).values()]) for m in (low, exact))
    assert float(torch.nn.functional.cosine_similarity(flat, other, dim=0)) > 0.97


def test_activations_are_bfloat16_and_prototypes_are_rounded_only_after_weight_norm() -> None:
    method, batch = tiny_glare().eval(), tiny_batch()
    seen: dict[str, torch.dtype] = {}
    method.student.backbone.vit.blocks[1].block.norm2.register_forward_hook(
        lambda module, inputs, output: seen.update(stream=inputs[0].dtype, norm=output.dtype)
    )
    original = method.student.head.prototypes

    def prototypes() -> Tensor:
        seen["prototypes"] = original().dtype
        return original()

    method.student.head.prototypes = prototypes  # type: ignore[method-assign]
    ComputeCopies(method, torch.bfloat16).call(method, lambda: method(batch, START))
    assert seen == {"stream": torch.bfloat16, "norm": torch.bfloat16, "prototypes": torch.float32}


def test_bfloat16_copies_follow_the_weights_and_the_teachers_averages() -> None:
    method, batch = tiny_glare().eval(), tiny_batch()
    copies = ComputeCopies(method, torch.bfloat16)
    before = float(copies.call(method, lambda: method(batch, START)).total.detach())
    for parameters in ([p for p in method.parameters() if p.requires_grad], method.teacher.averaged_parameters()):
        for parameter in parameters:
            parameter.data += 0.1
        after = float(copies.call(method, lambda: method(batch, START)).total.detach())
        assert after != before
        before = after


def test_a_bfloat16_run_keeps_float32_weights_and_moves_by_less_than_bfloat16_can_tell(
    images: Path, tmp_path: Path
) -> None:
    run(images, tmp_path / "run", precision="bf16", optim__lr_per_256=1e-4, optim__lr_is_peak=True)
    state = checkpoint(tmp_path / "run")["method"]
    first = run(images, tmp_path / "still", precision="bf16", optim__lr_per_256=1e-12, optim__lr_is_peak=True)
    still = checkpoint(first.run)["method"]
    name = "student.backbone.vit.blocks.0.norm1.weight"
    assert state[name].dtype == torch.float32
    moved = (state[name] - still[name]).abs()
    assert 0 < float(moved.max()) < 2**-8  # near 1, bfloat16 resolves 2^-8: such steps would be lost in it


def test_recomputing_blocks_changes_neither_loss_nor_gradients(images: Path, tmp_path: Path) -> None:
    plain, again, batch = tiny_glare("all"), tiny_glare("all"), tiny_batch()
    again.student.backbone.recompute_blocks = True
    found = []
    for method in (plain, again):
        method.student.backbone.vit.blocks[1].drop_path1.drop_prob = 0.0
        method(batch, START).total.backward()
        found.append(_gradients(method))
    torch.testing.assert_close(found[0], found[1])
    low = []
    for method in (plain, again):
        method.zero_grad()
        ComputeCopies(method, torch.bfloat16).call(method, partial(method, batch, START)).total.backward()
        low.append(_gradients(method))
    torch.testing.assert_close(low[0], low[1])
    one = run(images, tmp_path / "one", network__drop_path=0.3)
    two = run(images, tmp_path / "two", network__drop_path=0.3, engine__recompute_blocks=True)
    assert_same_training(one.run, two.run)


def test_recomputing_keeps_less() -> None:
    def kept(recompute: bool) -> int:
        method, sizes = tiny_glare("all"), []
        method.student.backbone.recompute_blocks = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):  # type: ignore[func-returns-value]
            method(tiny_batch(), START)
        return sum(sizes)

    assert kept(True) < 0.7 * kept(False)


def _short_memory(monkeypatch: pytest.MonkeyPatch, *, limit: int, error: type[Exception], after: int = 0) -> list[int]:
    """Let the loss run out of memory, from call `after` on, for micro-batches of more than `limit` images."""
    original, sizes = Glare.parts, []

    def parts(self: Glare, micro_batches: Any) -> Any:
        held = list(micro_batches)
        for part in original(self, held):
            sizes.append(len(held[0][0]))
            if len(sizes) > after and sizes[-1] > limit:
                part()  # what has been observed by then must not count
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
            yield part

    monkeypatch.setattr(Glare, "parts", parts)
    return sizes


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_where_memory_runs_out_micro_batches_are_halved_once_and_the_run_is_that_of_small_ones(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    expected = run(images, tmp_path / "small", engine__micro_batch_size=2)
    recorder = Recorder()
    with monkeypatch.context() as patch:
        sizes = _short_memory(patch, limit=2, error=error)
        found = run(images, tmp_path / "short", engine__micro_batch_size=4, watcher=recorder)
    assert sizes[:3] == [4, 2, 2]
    assert [m for m in recorder.messages if "memory ran out at step 0; going on with micro-batches of 2 images" in m]
    assert_same_training(found.run, expected.run)


def test_memory_that_runs_out_in_mid_run_neither_repeats_nor_loses_a_step_and_the_run_resumes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _short_memory(patch, limit=2, error=RuntimeError, after=3)
        whole = run(images, tmp_path / "whole", engine__micro_batch_size=4)
    assert [line["step"] for line in metrics(whole.run)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint(whole.run)["plan"]["num_slots"] == 2
    with monkeypatch.context() as patch:
        _short_memory(patch, limit=2, error=RuntimeError, after=3)
        run(images, tmp_path / "cut", engine__micro_batch_size=4, watcher=stop_after(4))
    resumed = run(images, tmp_path / "cut", engine__micro_batch_size=4, resume=True)
    assert_same_training(resumed.run, whole.run)


def test_memory_that_is_short_for_half_a_share_as_well_ends_the_run_with_advice(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_memory(monkeypatch, limit=1, error=RuntimeError)
    with pytest.raises(RekindleError, match=r"micro-batches of 2 images (.|\n)*--engine.micro-batch-size"):
        run(images, tmp_path / "run", engine__micro_batch_size=4)


def test_a_run_that_goes_on_takes_the_smaller_micro_batches_that_are_asked_for(images: Path, tmp_path: Path) -> None:
    """As the message of short memory advises; a size that is larger than the run's own is what memory was short for."""
    out = tmp_path / "run"
    for size, slots, watcher in ((4, 1, stop_after(2)), (2, 2, stop_after(4)), (4, 2, Recorder())):
        run(images, out, engine__micro_batch_size=size, resume=size != 4 or slots == 2, watcher=watcher)
        assert checkpoint(out)["plan"]["num_slots"] == slots
    assert checkpoint(out)["step"] == 6


def test_only_memory_errors_count_as_such() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_compiler_that_fails_costs_one_line_and_no_number(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here\nand a long trace")

    expected = run(images, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", broken)
    recorder = Recorder()
    found = run(images, tmp_path / "asked", engine__compile=True, watcher=recorder)
    assert [m for m in recorder.messages if "torch.compile failed (RuntimeError: no compiler here); going on" in m]
    assert_same_training(found.run, expected.run)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_loss(images: Path, tmp_path: Path) -> None:
    expected, recorder = run(images, tmp_path / "plain"), Recorder()
    found = run(images, tmp_path / "compiled", engine__compile=True, watcher=recorder)
    assert not [m for m in recorder.messages if "compile failed" in m]
    losses = [[line["loss"] for line in metrics(r.run)] for r in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
