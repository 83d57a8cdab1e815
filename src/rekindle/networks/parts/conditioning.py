# SPDX-License-Identifier: Apache-2.0
"""Conditioning: lets one plain encoder fit targets of different base models, and goes when training ends (arXiv:2210.11016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone

STATE = "conditioning"
"""Name under which a method keeps its `Conditioning`, and so the prefix of its tensors in a checkpoint."""


class InputAdapter(Mlp):
    """T' = MLP(T): what the encoder gets in place of its class token T, the same for every image; no residual, no norm.

    Width D -> 4 D -> D; 4,722,432 parameters at D = 768.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 4 * width)
        _initialise(self)


class EncoderAdapters(nn.Module):
    """Outputs of all blocks, fused group by group: Z_n = FC_n(blocks of group n), Z'_n = Z_n + MLP_n(Z_n), Z_e = LN(sum Z'_n).

    One LayerNorm over all depth * width channels comes first (the released code; the paper does not name it). 19,695,104
    parameters for a ViT-B with groups of 3 blocks.

    Args: width, depth, of the encoder; blocks_per_group divides the depth; hidden, width of the MLPs.
    Raises: RequestError for a depth that is not cut into equal groups.
    """

    def __init__(self, width: int, depth: int, *, blocks_per_group: int, hidden: int) -> None:
        super().__init__()
        if depth % blocks_per_group:
            fitting = ", ".join(str(n) for n in range(1, depth + 1) if depth % n == 0)
            raise RequestError(
                f"--tec.blocks-per-group {blocks_per_group} does not divide the encoder's {depth} blocks; use one of {fitting}"
            )
        groups = depth // blocks_per_group
        self.norm_blocks = nn.LayerNorm(depth * width, eps=1e-6)
        self.linear = nn.ModuleList(nn.Linear(blocks_per_group * width, width) for _ in range(groups))
        self.mlp = nn.ModuleList(Mlp(width, hidden) for _ in range(groups))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        _initialise(self)

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return Z_e [N, T, D] of the outputs [N, T, D] of all blocks, the last one after the encoder's final norm."""
        return self.joined(self.groups(outputs))

    def joined(self, groups: Sequence[Tensor]) -> Tensor:
        """Return Z_e of the groups' Z'_n."""
        fused: Tensor = self.norm(torch.stack(list(groups)).sum(dim=0))
        return fused

    def groups(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return Z'_n [N, T, D] of each group, whose sum is Z_e before its norm (see `objectives.contributions`)."""
        chunks = self.norm_blocks(torch.cat(list(outputs), dim=-1)).chunk(len(self.linear), dim=-1)
        joined = [linear(chunk) for linear, chunk in zip(self.linear, chunks, strict=True)]
        return [z + mlp(z) for mlp, z in zip(self.mlp, joined, strict=True)]


class Conditioning(nn.Module):
    """The adapters of one new encoder, either of which may be absent; they only read the encoder.

    Attributes:
        input: makes the class token.
        encoder: fuses the blocks' outputs.
    """

    def __init__(self, input_adapter: InputAdapter | None, encoder_adapters: EncoderAdapters | None) -> None:
        super().__init__()
        self.input, self.encoder = input_adapter, encoder_adapters

    def class_token(self, backbone: Backbone) -> Float[Tensor, "1 1 D"] | None:
        """Return T' of the backbone's class token; None without an input adapter: the backbone uses its own."""
        if self.input is None:
            return None
        token: Tensor = self.input(backbone.vit.cls_token)
        return token

    def fuse(self, outputs: Sequence[Tensor]) -> Float[Tensor, "N T D"]:
        """Return Z_e; without encoder adapters the last block's output."""
        return outputs[-1] if self.encoder is None else self.encoder(outputs)

    @torch.no_grad()
    def merged(self, backbone: Backbone) -> Backbone:
        """Return the plain network that does what the conditioned one did: its class token is T', evaluated once.

        The input of the MLP is a constant, so this is exact. All tensors but the class token are shared with `backbone`.
        """
        token = self.class_token(backbone)
        if token is None:
            return backbone
        shared: dict[int, object] = {
            id(p): p for p in (*backbone.parameters(), *backbone.buffers()) if p is not backbone.vit.cls_token
        }
        plain = copy.deepcopy(backbone, shared | {id(backbone.compiled): None})  # compiled code has no copy
        plain.vit.cls_token.copy_(token)
        return plain


def read_conditioning(checkpoint: str | Path) -> tuple[Conditioning, Float[Tensor, "1 1 D"]]:
    """Return the adapters of a run and the class token T that its input adapter reads, for parameter-efficient fine-tuning.

    Args: checkpoint, `checkpoints/last.ckpt` of a run folder. The run's model goes with them: it holds T' in place of T.
    Raises: RequestError for a file that is not there or holds no such adapters.
    """
    try:
        stored: Mapping[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["method"]
    except Exception as error:  # a file of any kind may be given, and reading one has no common error
        raise RequestError(
            f"{checkpoint} is no checkpoint of a run ({type(error).__name__}); give RUN/checkpoints/last.ckpt"
        ) from error
    tensors = {n.removeprefix(f"{STATE}."): t for n, t in stored.items() if n.startswith(f"{STATE}.")}
    token = stored.get("student.vit.cls_token")
    if not tensors or token is None:
        raise RequestError(
            f"{checkpoint} holds no adapters of a trained encoder; they come from --method tec --train all with "
            "--tec.input-adapter or --tec.encoder-adapter"
        )
    width, encoder = token.shape[-1], None
    if "encoder.norm.weight" in tensors:
        per_group = tensors["encoder.linear.0.weight"].shape[1] // width
        depth = tensors["encoder.norm_blocks.weight"].shape[0] // width
        hidden = tensors["encoder.mlp.0.fc1.weight"].shape[0]
        encoder = EncoderAdapters(width, depth, blocks_per_group=per_group, hidden=hidden)
    conditioning = Conditioning(InputAdapter(width) if "input.fc1.weight" in tensors else None, encoder)
    conditioning.load_state_dict(tensors, strict=True)
    return conditioning, token


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
