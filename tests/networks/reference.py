# SPDX-License-Identifier: Apache-2.0
"""A small ViT written out from the formulas: the oracle of the loader."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS, PATCH, SIDE = 128, 2, 2, 8, 4


def random_state(
    *, prefix: int = 1, rows: int | None = None, layer_scale: bool = False, patch: int = PATCH, seed: int = 0
) -> State:
    """Timm-named tensors; `cls_token` holds all prefix tokens, as in UDI."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(*shape, generator=source)

    state = {
        "cls_token": draw(1, prefix, WIDTH),
        "pos_embed": draw(1, SIDE * SIDE + prefix if rows is None else rows, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, patch, patch, scale=0.05),
        "patch_embed.proj.bias": draw(WIDTH),
    }
    for i in range(DEPTH):
        sizes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, (out, inner) in sizes.items():
            state[f"blocks.{i}.{name}.weight"] = draw(out, inner, scale=0.08)
            state[f"blocks.{i}.{name}.bias"] = draw(out)
        for norm in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{norm}.weight": 1 + draw(WIDTH), f"blocks.{i}.{norm}.bias": draw(WIDTH)}
        if layer_scale:
            state |= {f"blocks.{i}.ls1.gamma": draw(WIDTH), f"blocks.{i}.ls2.gamma": draw(WIDTH)}
    return state | {"norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}


def reference_features(
    state: State, pixels: Tensor, *, registers: Tensor | None = None, has_cls: bool = True, norm: bool = True
) -> Tensor:
    """All tokens after the final norm; `registers` join without positions, after the class token (DINOv2)."""
    patches = patchify(state, pixels)
    grid = pixels.shape[-2] // state["patch_embed.proj.weight"].shape[-2], pixels.shape[-1] // _patch(state)
    prefix = state["cls_token"] if has_cls else state["cls_token"][:, :0]
    table = state["pos_embed"]
    rows = prefix.shape[1]
    positions = torch.cat([table[:, :rows], dino_positions(table[:, rows:], SIDE, grid)], 1)
    x = torch.cat([prefix.expand(len(patches), -1, -1), patches], 1) + positions
    if registers is not None:
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1)
    for i in range(DEPTH):
        x = reference_block(state, f"blocks.{i}.", x)
    return layer_norm(x, state["norm.weight"], state["norm.bias"]) if norm else x


def _patch(state: State) -> int:
    return state["patch_embed.proj.weight"].shape[-1]


def patchify(state: State, pixels: Tensor) -> Tensor:
    """The patch embedding as a matrix product over cut-out patches."""
    p = _patch(state)
    n, c, h, w = pixels.shape
    cut = pixels.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c * p * p)
    return cut @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def reference_block(state: State, at: str, x: Tensor) -> Tensor:
    attended, _ = attention(state, at, x)
    x = x + state.get(f"{at}ls1.gamma", torch.ones(1)) * attended
    y = layer_norm(x, state[f"{at}norm2.weight"], state[f"{at}norm2.bias"])
    y = y @ state[f"{at}mlp.fc1.weight"].T + state[f"{at}mlp.fc1.bias"]
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    y = y @ state[f"{at}mlp.fc2.weight"].T + state[f"{at}mlp.fc2.bias"]
    return x + state.get(f"{at}ls2.gamma", torch.ones(1)) * y


def attention(state: State, at: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the attention returns, and its weights [N, heads, T, T]."""
    y = layer_norm(x, state[f"{at}norm1.weight"], state[f"{at}norm1.bias"])
    qkv = y @ state[f"{at}attn.qkv.weight"].T + state[f"{at}attn.qkv.bias"]
    q, k, v = (part.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return mixed @ state[f"{at}attn.proj.weight"].T + state[f"{at}attn.proj.bias"], weights


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel with torch's constant."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def sampling_matrix(native: int, new: int, offset: float = 0.1) -> Tensor:
    """[new, native]: row `dst` samples at (dst + 0.5) * native / (new + offset) - 0.5, borders repeated."""
    matrix = torch.zeros(new, native)
    for dst in range(new):
        src = (dst + 0.5) * native / (new + offset) - 0.5
        for tap in range(math.floor(src) - 1, math.floor(src) + 3):
            matrix[dst, min(max(tap, 0), native - 1)] += cubic(src - tap)
    return matrix


def dino_positions(table: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """The closed form of DINO's interpolation of [1, side * side, D]."""
    if grid == (side, side):
        return table
    image = table.reshape(side, side, -1)
    rows, columns = (sampling_matrix(side, g) for g in grid)
    return torch.einsum("yi,xj,ijd->yxd", rows, columns, image).reshape(1, grid[0] * grid[1], -1)


def sincos_table(side: int, width: int) -> Tensor:
    """A fixed 2-D sine-cosine table [1, side * side, width]."""
    frequency = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [coordinate.reshape(-1, 1) * frequency for coordinate in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)[None]


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def head_state() -> State:
    return {
        "mlp.0.weight": torch.ones(4, 4),
        "last_layer.weight_g": torch.ones(8, 1),
        "last_layer.weight_v": torch.ones(8, 4),
    }


def hugging_face(state: State, *, dinov2: bool) -> State:
    """The names of transformers' ViTModel or Dinov2Model."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inner = {"attn.proj": "attention.output.dense"}
    inner |= (
        {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        if dinov2
        else {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
    )
    out = {}
    for name, tensor in state.items():
        if name in names:
            out[names[name]] = tensor
            continue
        _, block, rest = name.split(".", 2)
        stem, _, kind = rest.rpartition(".")
        at = f"encoder.layer.{block}."
        if stem == "attn.qkv":
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"{at}attention.attention.{part}.{kind}"] = chunk
        elif stem in ("ls1", "ls2"):
            out[f"{at}layer_scale{stem[-1]}.lambda1"] = tensor
        else:
            out[f"{at}{inner[stem]}.{kind}"] = tensor
    return out
