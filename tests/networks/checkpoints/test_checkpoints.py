# SPDX-License-Identifier: Apache-2.0
"""S8: one reference network, written in every layout, gives its features back."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import backbone_from_description, create_backbone
from rekindle.networks.checkpoints.reading import read_checkpoint
from rekindle.networks.checkpoints.tensors import MatchReport, tensors_hash, write_checkpoint
from rekindle.networks.options import NetworkOptions
from tests.networks.reference import (
    PATCH,
    SIDE,
    WIDTH,
    State,
    head_state,
    hugging_face,
    layer_norm,
    prefixed,
    random_state,
    reference_features,
    sincos_table,
)

ARGS = {
    "epoch": 3,
    "args": argparse.Namespace(arch="vit_small", lr=0.1),
    "optimizer": {"state": {}, "param_groups": []},
}
OTHER = random_state(seed=99)


def _dino_like(state: State, loss: str, **extra: Tensor) -> dict[str, Any]:
    """A full checkpoint: a student under DDP, a teacher with the weights that count."""
    return {
        "student": prefixed("module.backbone.", OTHER | extra) | prefixed("module.head.", head_state()),
        "teacher": prefixed("backbone.", state | extra) | prefixed("head.", head_state()),
        loss: {"center": torch.zeros(1, 8)},
        **ARGS,
    }


def _moco(state: State) -> dict[str, Any]:
    return {
        "state_dict": prefixed("module.base_encoder.", state)
        | prefixed("module.base_encoder.head.", {"0.weight": torch.ones(4, 4)})
        | prefixed("module.momentum_encoder.", OTHER)
        | {"module.predictor.0.weight": torch.ones(4, 4)},
        "epoch": 3,
        "arch": "vit_small",
    }


def _mae(state: State) -> dict[str, Any]:
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_embed.weight": torch.ones(8, 8),
        "decoder_pos_embed": torch.ones(1),
    }
    blocks = {"decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_norm.weight": torch.ones(8)}
    return {"model": state | decoder | blocks}


def _chunked(state: State) -> State:
    """DINOv2 as trained: blocks in chunks, an unused mask token."""
    renamed = {n.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for n, t in state.items()}
    return renamed | {"mask_token": torch.ones(1, WIDTH)}


LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "dino backbone only": dict,
    "dino full": lambda s: _dino_like(s, "dino_loss"),
    "ibot full": lambda s: _dino_like(s, "ibot_loss", masked_embed=torch.ones(1, WIDTH)),
    "ibot backbone only": lambda s: {"state_dict": s | {"masked_embed": torch.ones(1, WIDTH)}},
    "mae": _mae,
    "mocov3": _moco,
    "dinov2": _chunked,
    "dinov2 training": lambda s: {"teacher": prefixed("backbone.", _chunked(s)) | prefixed("dino_head.", head_state())},
    "hugging face vit": lambda s: (
        prefixed("vit.", hugging_face(s, dinov2=False)) | {"classifier.weight": torch.ones(2, 2)}
    ),
    "hugging face vit with pooler": lambda s: hugging_face(s, dinov2=False) | {"pooler.dense.weight": torch.ones(2, 2)},
    "hugging face dinov2": lambda s: hugging_face(s, dinov2=True) | {"embeddings.mask_token": torch.ones(1, WIDTH)},
    "timm classifier": lambda s: s | {"head.weight": torch.ones(5, WIDTH), "head.bias": torch.ones(5)},
    "torch hub wrapper": lambda s: {"model_state_dict": prefixed("encoder.", s)},
}


def _images(height: int = PATCH * SIDE, width: int | None = None) -> Tensor:
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(5))


def _write(path: Path, content: dict[str, Any]) -> str:
    torch.save(content, path)
    return str(path)


def _load(name: str, **options: Any) -> tuple[Backbone, MatchReport]:
    backbone, report = create_backbone(name, NetworkOptions(**options))
    assert report is not None
    return backbone.eval(), report


def _assert_same(backbone: Backbone, state: State, **reference: Any) -> None:
    for pixels in (_images(), _images(3 * PATCH), _images(6 * PATCH, 5 * PATCH)):
        expected = reference_features(state, pixels, **reference)
        torch.testing.assert_close(backbone(pixels).sequence, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_reference_features(layout: str, tmp_path: Path) -> None:
    state = random_state(layer_scale="dinov2" in layout)
    backbone, report = _load(_write(tmp_path / "file.pth", LAYOUTS[layout](state)))
    assert report.is_complete and len(report.matched) == len(state)
    assert str(report).startswith(f"matched {len(state)} of {len(state)} tensors")
    _assert_same(backbone, state)


def test_safetensors_file_of_hugging_face_names(tmp_path: Path) -> None:
    state = random_state()
    save_file(hugging_face(state, dinov2=False), tmp_path / "model.safetensors")
    _assert_same(_load(str(tmp_path / "model.safetensors"))[0], state)


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_udi_class_tokens_split_and_no_stray_key_is_left(who: str, tmp_path: Path) -> None:
    state, wrapper = random_state(prefix=2), "" if who == "teacher" else "module."
    srs = {
        "attn.qkv.weight": torch.ones(4, 4),
        "norm1.weight": torch.full((WIDTH,), 2.0),
        "norm1.bias": torch.ones(WIDTH),
    }
    heads = {f"{i}.{name}": t for i in range(3) for name, t in head_state().items()}
    inner = prefixed("backbone.backbone.", state) | prefixed("backbone.", srs) | prefixed("head.", heads)
    path = _write(tmp_path / "udi.pth", {who: prefixed(wrapper, inner), "udi_loss": {"center": torch.ones(1)}, **ARGS})
    backbone, report = _load(path)
    assert report.is_complete and backbone.num_registers == 1 and backbone.has_cls
    assert "backbone.norm1.weight" in report.ignored
    tokens = backbone(_images())
    torch.testing.assert_close(tokens.registers[:, 0], reference_features(state, _images())[:, 1], atol=2e-5, rtol=1e-4)
    _assert_same(backbone, state)

    with_norm, _ = _load(path, patch_norm="udi_norm1")
    raw = reference_features(state, _images(), norm=False)[:, 2:]
    expected = layer_norm(raw, srs["norm1.weight"], srs["norm1.bias"])
    tokens_with_norm = with_norm(_images())
    torch.testing.assert_close(tokens_with_norm.patches.flatten(1, 2), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(tokens_with_norm.sequence[:, :2], tokens.sequence[:, :2])
    write_checkpoint(with_norm, tmp_path / "own.safetensors")
    again, _ = _load(str(tmp_path / "own.safetensors"))
    assert torch.equal(again(_images()).sequence, tokens_with_norm.sequence)


def test_udi_norm_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--network.patch-norm udi_norm1 needs a UDI checkpoint file"):
        _load(_write(tmp_path / "dino.pth", random_state()), patch_norm="udi_norm1")


def _flsl(tmp_path: Path) -> tuple[State, str]:
    state = random_state(rows=SIDE * SIDE) | {"pos_embed": sincos_table(SIDE, WIDTH)}
    return state, _write(tmp_path / "flsl.pth", _dino_like(state, "flsl_loss"))


def test_flsl_with_its_mean_as_class_token(tmp_path: Path) -> None:
    state, path = _flsl(tmp_path)
    backbone, report = _load(path, flsl_cls="meanpool")
    assert report.is_complete and "backbone.cls_token" in report.ignored
    expected = reference_features(state, _images(), has_cls=False)
    tokens = backbone(_images())
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected, atol=2e-5, rtol=1e-4)
    assert tokens.cls is not None and backbone.has_cls and backbone.fixed_positions
    torch.testing.assert_close(tokens.cls, expected.mean(1), atol=2e-5, rtol=1e-4)


def test_flsl_with_a_new_class_token_that_the_seed_decides(tmp_path: Path) -> None:
    state, path = _flsl(tmp_path)
    backbone, report = _load(path)
    again, _ = create_backbone(path, NetworkOptions(), seed=0)
    other, _ = create_backbone(path, NetworkOptions(), seed=1)
    fresh = backbone.vit.cls_token
    assert report.is_complete and report.fresh == ("cls_token",) and "; 1 fresh;" in str(report)
    assert backbone.fixed_positions and backbone.vit.pos_embed.shape[1] == SIDE * SIDE
    assert torch.equal(fresh, again.vit.cls_token) and not torch.equal(fresh, other.vit.cls_token)
    assert not torch.equal(fresh, state["cls_token"]) and 0.005 < fresh.std() < 0.04
    assert backbone(_images(), cls_attention=True).cls is not None


def test_registers_of_dinov2_join_without_positions(tmp_path: Path) -> None:
    state, registers = random_state(layer_scale=True), torch.randn(1, 4, WIDTH)
    for number, content in enumerate(
        (
            _chunked(state) | {"register_tokens": registers},
            hugging_face(state, dinov2=True) | {"embeddings.register_tokens": registers},
        )
    ):
        backbone, report = _load(_write(tmp_path / f"{number}.pth", content))
        assert report.is_complete and backbone.num_registers == 4 and backbone.pos_interp == "antialias"
        again, _ = _load(str(tmp_path / f"{number}.pth"), pos_interp="dino")
        _assert_same(again, state, registers=registers)
        native = reference_features(state, _images(), registers=registers)
        torch.testing.assert_close(backbone(_images()).sequence, native, atol=2e-5, rtol=1e-4)


def _dinov3_files(source: Backbone) -> dict[str, State]:
    """The same rotary network by its authors' names and by transformers'."""
    state = source.vit.state_dict()
    official: State = {}
    transformers: State = {}
    names = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    names |= {"mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj"}
    short = {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2"} | (
        {"mlp.fc2": "mlp.w3"} if "blocks.0.mlp.fc1_g.bias" in state else {}
    )
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            official[name.replace("reg_token", "storage_tokens")] = tensor
            name = name.replace("reg_token", "embeddings.register_tokens").replace("cls_token", "embeddings.cls_token")
            transformers[name.replace("patch_embed.proj", "embeddings.patch_embeddings")] = tensor
            continue
        _, block, rest = name.split(".", 2)
        stem, _, kind = rest.rpartition(".")
        at, hf = f"blocks.{block}.", f"layer.{block}."
        if rest == "attn.qkv.weight":
            official[at + rest] = tensor
            transformers |= {f"{hf}attention.{p}_proj.weight": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif rest == "attn.q_bias":
            official[f"{at}attn.qkv.bias"] = torch.cat([tensor, torch.zeros(WIDTH), state[f"{at}attn.v_bias"]])
            official[f"{at}attn.qkv.bias_mask"] = torch.zeros(3 * WIDTH)
            transformers[f"{hf}attention.q_proj.bias"] = tensor
        elif rest == "attn.v_bias":
            transformers[f"{hf}attention.v_proj.bias"] = tensor
        elif rest.startswith("gamma_"):
            official[f"{at}ls{rest[-1]}.gamma"] = tensor
            transformers[f"{hf}layer_scale{rest[-1]}.lambda1"] = tensor
        else:
            official[f"{at}{short.get(stem, stem)}.{kind}"] = tensor
            transformers[f"{hf}{names.get(stem, stem)}.{kind}"] = tensor
    official |= {"mask_token": torch.ones(1, WIDTH), "rope_embed.periods": torch.ones(16)}
    return {
        "official": official,
        "transformers": transformers | {"embeddings.mask_token": torch.ones(1, 1, WIDTH)},
        "timm": state,
    }


@pytest.mark.parametrize("extra", ["qkv_bias=false", "qkv_bias=true", "swiglu=true,hidden=240"])
def test_dinov3_in_three_namings(extra: str, tmp_path: Path) -> None:
    name = f"dinov3:width={WIDTH},depth=2,heads=2,patch=8,{extra}"
    source, _ = create_backbone(name, NetworkOptions(), init="random", drop_path=0.0)
    torch.manual_seed(0)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    expected = source.eval().vit.forward_features(_images(40, 24))
    for layout, state in _dinov3_files(source).items():
        backbone, report = _load(_write(tmp_path / f"{layout}.pth", state))
        assert report.is_complete and backbone.num_registers == 4, layout
        torch.testing.assert_close(backbone(_images(40, 24)).sequence, expected, msg=layout)


def test_key_chooses_the_network(tmp_path: Path) -> None:
    dino = _write(tmp_path / "dino.pth", _dino_like(random_state(), "dino_loss"))
    _assert_same(_load(dino, checkpoint_key="student")[0], OTHER)
    moco = _write(tmp_path / "moco.pth", _moco(random_state()))
    for key in ("momentum_encoder", "teacher"):
        _assert_same(_load(moco, checkpoint_key=key)[0], OTHER)
    with pytest.raises(RequestError, match=r"no entry 'ema' \(--network.checkpoint-key\); it has student, teacher"):
        _load(dino, checkpoint_key="ema")


def _training(state: State, entry: str = "model") -> dict[str, Any]:
    """What DINOv2 and DINOv3 hold while they train: both networks in one entry, blocks in chunks."""
    networks = prefixed("student.backbone.", _chunked(OTHER)) | prefixed("teacher.backbone.", _chunked(state))
    heads = prefixed("teacher.dino_head.", head_state()) | prefixed("student.dino_head.", head_state())
    return {entry: networks | heads, "iteration": 10}


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_dinov2_in_training_gives_its_teacher_and_by_key_its_student(entry: str, tmp_path: Path) -> None:
    state = random_state()
    path = _write(tmp_path / "model.rank_0.pth", _training(state, entry))
    for key in (None, "teacher", "teacher.backbone", entry):
        _assert_same(_load(path, checkpoint_key=key)[0], state)
    for key in ("student", "student.backbone"):
        _assert_same(_load(path, checkpoint_key=key)[0], OTHER)
    with pytest.raises(RequestError, match=rf"no entry 'ema' .* it has {entry}, iteration; inside: student, teacher"):
        _load(path, checkpoint_key="ema")
    save_file(_training(state)["model"], tmp_path / "flat.safetensors")
    _assert_same(_load(str(tmp_path / "flat.safetensors"))[0], state)
    _assert_same(_load(str(tmp_path / "flat.safetensors"), checkpoint_key="student")[0], OTHER)
    with pytest.raises(RequestError, match="no entry 'ema'"):
        _load(str(tmp_path / "flat.safetensors"), checkpoint_key="ema")


def test_the_networks_of_a_file_that_names_neither_are_offered_by_a_key_that_works(tmp_path: Path) -> None:
    state = random_state()
    path = _write(tmp_path / "two.pth", {"model": prefixed("first.net.", OTHER) | prefixed("second.net.", state)})
    with pytest.raises(
        RequestError, match=r"more than one network .*choose with --network.checkpoint-key (\S+)$"
    ) as caught:
        _load(path)
    _assert_same(_load(path, checkpoint_key=str(caught.value).split()[-1])[0], state)


def test_one_share_of_a_sharded_training_points_to_the_file_that_is_whole(tmp_path: Path) -> None:
    share = {"model": {"teacher.backbone._fsdp_wrapped_module._flat_param": torch.ones(8)}, "iteration": 10}
    with pytest.raises(RequestError, match=r"share of a sharded training .*eval/training_\*/teacher_checkpoint\.pth"):
        _load(_write(tmp_path / "model.rank_0.pth", share))
    (tmp_path / "eval" / "training_9").mkdir(parents=True)
    whole = {"teacher": prefixed("backbone.", _chunked(random_state())) | prefixed("dino_head.", head_state())}
    _write(tmp_path / "eval" / "training_9" / "teacher_checkpoint.pth", whole)
    advised = next(tmp_path.glob("eval/training_*/teacher_checkpoint.pth"))
    _assert_same(_load(str(advised))[0], random_state())


@pytest.mark.parametrize("word", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_words_that_training_puts_into_names_are_taken_out(word: str, tmp_path: Path) -> None:
    state = random_state()
    inside = {n.replace("blocks.1.", f"blocks.1.{word}."): t for n, t in state.items()}
    backbone, report = _load(
        _write(tmp_path / "wrapped.pth", {"model": {"teacher": prefixed(f"{word}.backbone.", inside)}})
    )
    assert report.is_complete
    _assert_same(backbone, state)


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_hostile_pickle_is_refused_by_name_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = _write(tmp_path / "bad.pth", {"state_dict": {"x": torch.ones(1)}, "hook": _Hostile(marker)})
    with pytest.raises(RequestError, match=r"was refused: .*posix\.mkdir.*never run.*save_file"):
        _load(path)
    assert not marker.exists()
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(_Hostile(marker)))
    with pytest.raises(RequestError, match=r"plain\.pth"):
        _load(str(plain))
    assert not marker.exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"missing\.pth does not exist"):
        _load(str(tmp_path / "missing.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(RequestError, match=r"text\.pth is not a PyTorch checkpoint, or is damaged"):
        _load(str(tmp_path / "text.pth"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(RequestError, match=r"text\.safetensors is not a safetensors file"):
        _load(str(tmp_path / "text.safetensors"))
    with pytest.raises(RequestError, match=r"no vision transformer in this file.*conv1\.weight"):
        _load(_write(tmp_path / "resnet.pth", {"conv1.weight": torch.ones(1)}))
    with pytest.raises(RequestError, match="holds a list; expected a dictionary"):
        _load(_write(tmp_path / "list.pth", [1]))  # type: ignore[arg-type]


def test_partial_match_is_refused_unless_allowed(tmp_path: Path) -> None:
    state = random_state()
    del state["blocks.1.mlp.fc1.bias"]
    path = _write(tmp_path / "part.pth", state | {"blocks.0.attn.extra": torch.ones(3)})
    with pytest.raises(RequestError) as caught:
        _load(path)
    message = str(caught.value)
    assert "matched 29 of 30 tensors; 1 missing; 1 unexpected" in message
    assert "missing: blocks.1.mlp.fc1.bias" in message and "unexpected: blocks.0.attn.extra" in message
    assert "--network.allow-partial" in message and "--network.arch" in message
    _, report = _load(path, allow_partial=True)
    assert report.missing == ("blocks.1.mlp.fc1.bias",) and len(report.matched) == 29


def test_shape_mismatch_tells_both_shapes(tmp_path: Path) -> None:
    state = random_state()
    state["blocks.1.attn.proj.weight"] = torch.ones(WIDTH, 5)
    with pytest.raises(RequestError, match=r"blocks.1.attn.proj.weight \(file \[128, 5\], network \[128, 128\]\)"):
        _load(_write(tmp_path / "shape.pth", state))


def test_heads_that_no_tensor_tells_are_asked_for(tmp_path: Path) -> None:
    name = "vit:width=40,depth=2,heads=5,patch=8,img=32"
    source, _ = create_backbone(name, NetworkOptions(), init="random", drop_path=0.0)
    path = _write(tmp_path / "odd.pth", source.vit.state_dict())
    with pytest.raises(RequestError, match=r"number of heads of a ViT of width 40; .*--network.arch"):
        _load(path)
    backbone, _ = _load(path, arch=name)
    assert backbone.num_heads == 5
    assert torch.equal(backbone(_images()).sequence, source.eval()(_images()).sequence)


def test_own_file_tells_its_architecture_and_normalisation(tmp_path: Path) -> None:
    name = "vit:width=40,depth=2,heads=5,patch=8,img=32,registers=2"
    source, _ = create_backbone(name, NetworkOptions(pos_interp="size"), init="random", drop_path=0.0)
    path = tmp_path / "own.safetensors"
    write_checkpoint(source, path)
    backbone, report = _load(str(path))
    assert report.is_complete and backbone.num_heads == 5 and backbone.mean == source.mean
    assert backbone.pos_interp == "size" and _load(str(path), pos_interp="dino")[0].pos_interp == "dino"
    assert backbone.identity.sha256 == source.identity.sha256 and backbone.identity.name == str(path)
    rebuilt = backbone_from_description(source.identity.to_dict())
    rebuilt.load_state_dict(backbone.state_dict())
    assert torch.equal(rebuilt.eval()(_images(24)).sequence, source.eval()(_images(24)).sequence)


@pytest.mark.parametrize("flsl_cls", ["new", "meanpool"])
def test_own_file_keeps_the_class_token_of_flsl(flsl_cls: str, tmp_path: Path) -> None:
    source, _ = _load(_flsl(tmp_path)[1], flsl_cls=flsl_cls)
    write_checkpoint(source, tmp_path / "own.safetensors")
    backbone, report = _load(str(tmp_path / "own.safetensors"))
    assert report.is_complete and not report.fresh and backbone.fixed_positions
    assert torch.equal(backbone(_images()).cls, source(_images()).cls)


def test_hash_depends_on_names_types_shapes_and_values_only() -> None:
    a, b = torch.arange(4.0), torch.tensor(1, dtype=torch.int64)
    base = tensors_hash({"a": a, "b": b})
    assert base == tensors_hash({"b": b.clone(), "a": a.repeat(2, 1).T[:, 0]})
    others = [
        {"a": a, "c": b},
        {"a": a.view(2, 2), "b": b},
        {"a": a.bfloat16(), "b": b},
        {"a": a + 1e-6, "b": b},
    ]
    assert len({base, *map(tensors_hash, others)}) == 5


def test_siblings_and_entry_are_told(tmp_path: Path) -> None:
    file = read_checkpoint(Path(_write(tmp_path / "f.pth", _dino_like(random_state(), "dino_loss"))))
    assert file.entry == "teacher" and "dino_loss" in file.siblings
