# SPDX-License-Identifier: Apache-2.0
"""Options of the optimizer and of the loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rekindle.core.options import Options


class OptimOptions(Options):
    """AdamW and its schedule; defaults are GLARE's (section 7 of its specification)."""

    lr_per_256: float = Field(1.5e-4, gt=0)
    """Peak learning rate for 256 images a step; scaled linearly with the batch."""
    lr_is_peak: bool = False
    """Take `lr_per_256` as the peak itself, whatever the batch."""
    final_lr: float = Field(1e-5, ge=0)
    """Learning rate at the last step (cosine); never above the peak."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of linear warm-up; at most `warmup_limit` of the run."""
    warmup_limit: float = Field(1 / 3, ge=0, lt=1)
    """Largest share of the run's steps that the warm-up takes (FLSL, whose warm-up is a tenth of the epochs: 0.1)."""
    start_lr: float = Field(0.0, ge=0)
    """Learning rate at the first step of the warm-up, counted like `lr_per_256`; never above the peak (MSN: 5e-5)."""
    stretch: float = Field(1.0, ge=1)
    """The schedules of learning rate and decay are made for this many times the run's steps, and cut at its end (MSN: 1.25)."""
    head_warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps, at the start, in which the method's heads alone move, so that a fresh head does not spoil a pretrained
    backbone. Only where there are such: not from random weights, and not where the checkpoint brings its head. Ours, and so 0
    with `recipe=paper`."""
    backbone_lr_factor: float = Field(1.0, gt=0)
    """Factor on the learning rate of what trains in the backbone, adapters included, against that of the heads (Leopart: 0.1)."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay at the start. What is decayed is the method's to say: usually all but biases and 1-D tensors."""
    final_weight_decay: float | None = Field(None, ge=0)
    """Weight decay at the end (cosine); None: constant."""
    decay_vectors: bool = False
    """Decay biases and 1-D tensors as well (MoCo v3's code)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first decay."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's second decay."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    clip_norm: float = Field(3.0, ge=0)
    """Largest norm of a gradient; 0 switches clipping off."""
    clip_over: Literal["tensor", "all"] = "tensor"
    """What that norm is of: each tensor by itself (DINO), or all gradients together (LOCA, MSN)."""


class EngineOptions(Options):
    """The loop: micro-batches, checkpoints, logs."""

    micro_batch_size: int | None = Field(None, ge=1)
    """Images that one process computes at a time; None: as many as fit into free memory, at most 64 on a GPU, and on a CPU
    16 or what keeps 0.6 GB (4 of a ViT-S/16 with the default views). The batch is cut into them, and what a step does is
    the average over them."""
    recompute_blocks: bool = False
    """Recompute each block of the student on the way back instead of keeping its activations: a fraction of the memory, for
    one more forward pass of the student."""
    trunk_bits: Literal[16, 8, 4] | None = None
    """Bits of a number in the frozen weights of the blocks' linear maps, under adapters: 16 (bfloat16), 8 or 4 in groups of 32;
    None: float32, and beside it the bfloat16 copy that precision=bf16 computes with. For memory: features move by some percent in
    4 bits (docs/performance.md). What is saved are the adapters, and they are saved on the base as it is."""
    compile: bool = False
    """Compile the blocks with torch.compile. It pays on GPUs in long runs; on CPUs it does not, and starts later."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Minutes between checkpoints; there is always one at the end and when the run is stopped."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, instead of minutes."""
    log_steps: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl and TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""
    pictures_every: int = Field(0, ge=0)
    """Steps between pictures in TensorBoard: tokens as colours against the base's, attention, what the method draws; 0: none.
    Needs --engine.tensorboard. The method's pictures of the end are written to the run's folder either way."""

    @model_validator(mode="after")
    def _somewhere_to_show(self) -> EngineOptions:
        if self.pictures_every and not self.tensorboard:
            raise ValueError(
                f"pictures_every = {self.pictures_every} shows pictures in TensorBoard, which tensorboard = False switches "
                "off; leave one of the two out"
            )
        return self
