#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Guess: the same DINOv2 weights give the same features in timm and in transformers at every image size.
# Seen: they do at the size that the position table was made for, and nowhere else: timm resizes the table with a low-pass filter
# (antialias), transformers without; for DINOv2 with registers transformers filters as well. Each follows its own reading.
# Why it matters here: features cached with one library are not those of the other at 224 px, where most people compare, so a
# loader has to know which rule a checkpoint was trained with, and parity tests have to say under which rule they hold.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.8
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
  torch==2.15.0 torchvision==0.29.2 timm==1.0.31 transformers==5.23.0
cat >"$folder/look.py" <<'PY'
from importlib.metadata import version

import timm
import torch
from transformers import Dinov2Config, Dinov2Model

torch.manual_seed(0)
theirs = Dinov2Model(
    Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=518, patch_size=14)
).eval()
for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
ours = timm.models.vision_transformer.VisionTransformer(
    img_size=518, patch_size=14, embed_dim=48, depth=2, num_heads=3, init_values=1.0, num_classes=0, dynamic_img_size=True
).eval()
given, state = theirs.state_dict(), {}
table = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
state = {name: given[other] for name, other in table.items()}
for block in range(2):
    start = f"encoder.layer.{block}."
    for part in ("weight", "bias"):
        rows = [given[f"{start}attention.{kind}_proj.{part}"] for kind in "qkv"]
        state[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(rows)
        for name, other in (
            ("attn.proj", "attention.o_proj"),
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            state[f"blocks.{block}.{name}.{part}"] = given[f"{start}{other}.{part}"]
    state[f"blocks.{block}.ls1.gamma"] = given[f"{start}layer_scale1.lambda1"]
    state[f"blocks.{block}.ls2.gamma"] = given[f"{start}layer_scale2.lambda1"]
ours.load_state_dict(state)
found = {}
with torch.no_grad():
    for size in (518, 224):
        image = torch.randn(1, 3, size, size)
        a, b = ours.forward_features(image), theirs(image).last_hidden_state
        found[size] = float((a - b).abs().max() / b.std())
print(f"timm {version('timm')}, transformers {version('transformers')}: largest difference, in deviations of a token: {found}")
assert found[518] < 1e-3 < 0.1 < found[224], "the behaviour has changed"
PY
cd "$folder" && env/bin/python look.py
