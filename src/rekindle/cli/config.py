# SPDX-License-Identifier: Apache-2.0
"""`rekindle config`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rekindle.cli.arguments import parse_run
from rekindle.core.option_trees import leaves

MEANING = {
    "default": "the option's default",
    "method": "what the method needs, however it is trained",
    "paper": "the paper's: the method's own from scratch (init=random), GLARE's (recipe=paper)",
    "base": "the run that this one goes on from",
    "recipe": "what suits this many images",
    "backbone": "what the backbone's patch divides",
    "file": "the run file",
    "asked": "the command line",
}

HELP = """usage: rekindle config [run.yaml] [options of rekindle pretrain] [--yaml]

Every value of a run, and what set it: default < method < paper < base, recipe, backbone < file < asked. With --images, the
recipe for so many images is filled in as `rekindle pretrain` does, and with --backbone the sizes of views that its patch
divides (unless it has to be downloaded first), with the reasons. --yaml prints a run file that can be passed back
with --config; --json prints {name: {value, source}, with `why` where a recipe chose}.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    wants_yaml = "--yaml" in rest
    resolved, taken = parse_run([a for a in rest if a != "--yaml"], program="config")
    if resolved.options.images:
        from rekindle.data.images import chosen_images
        from rekindle.pretraining.recipes import with_recipe

        resolved = with_recipe(resolved, len(chosen_images(resolved.options.images, resolved.options.data)))
    if resolved.options.backbone:
        from rekindle.adapters.saved import patch_of_model
        from rekindle.pretraining.recipes import with_view_sizes

        patch = patch_of_model(resolved.options.backbone)
        resolved = resolved if patch is None else with_view_sizes(resolved, patch)
    tree = resolved.options.model_dump(mode="json")
    if wants_yaml:
        print(resolved.to_yaml(), end="")
        return 0
    values: dict[str, dict[str, object]] = {}
    for name in leaves(tree):
        value = tree
        for part in name.split("."):
            value = value[part]
        values[name] = {"value": value, "source": resolved.sources[name]}
        if name in resolved.reasons:
            values[name]["why"] = resolved.reasons[name]
    if "--json" in taken.flags:
        print(json.dumps(values))
        return 0
    width = max(map(len, values))
    for name, entry in values.items():
        why = f": {entry['why']}" if "why" in entry else ""
        print(f"{name:<{width}}  {json.dumps(entry['value']):<28} {entry['source']}{why}")
    print("\n" + "\n".join(f"{source}: {meaning}" for source, meaning in MEANING.items()))
    return 0
