# SPDX-License-Identifier: Apache-2.0
"""`rekindle config`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.cli.arguments import asked_tree, parse_run
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import leaves
from rekindle.pretraining.options import Resolved

if TYPE_CHECKING:
    from rekindle.pretraining.papers import Setting

MEANING = {
    "default": "the option's default",
    "method": "what the method needs, however it is trained",
    "paper": "the paper's: the method's own from scratch (init=random), GLARE's (recipe=paper)",
    "base": "the run that this one goes on from",
    "recipe": "what suits this many images",
    "backbone": "what the backbone's patch divides",
    "machine": "what this machine computes in (seen in a run's own file)",
    "file": "the run file",
    "asked": "the command line",
}

HELP = """usage: rekindle config [run.yaml] [options of rekindle pretrain] [--yaml | --explain-paper]

Every value of a run, and what set it: default < method < paper < base, recipe, backbone < file < asked. With --images, the
recipe for so many images is filled in as `rekindle pretrain` does, and with --backbone the sizes of views that its patch
divides (unless it has to be downloaded first), with the reasons. --yaml prints a run file that can be passed back
with --config; --json prints {name: {value, source}, with `why` where a recipe chose}.

--explain-paper shows, for the method, every setting of --recipe paper and of --init random beside the value of the paper and its
place there: same, differs (and why), or not stated (and whose value was taken). With --json {claim: {name: {value, verdict,
stated, place, why}}}.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    own = {"--yaml", "--explain-paper"} & {*rest}
    if len(own) > 1:
        raise RequestError("--yaml and --explain-paper print different things; give one of them")
    resolved, taken = parse_run([a for a in rest if a not in own], program="config")
    if "--explain-paper" in own:
        return _explain_paper(resolved, as_json="--json" in taken.flags)
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
    if "--yaml" in own:
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


def _explain_paper(resolved: Resolved, *, as_json: bool) -> int:
    from rekindle.pretraining.papers import explain

    asked = asked_tree(resolved, "asked", "file") | {"method": resolved.options.method}
    claims = explain({}, asked)
    if as_json:
        print(json.dumps({claim: {s.name: s.told() for s in settings} for claim, settings in claims.items()}))
        return 0
    for claim, settings in claims.items():
        option, value = claim.split("=")
        print(f"{resolved.options.method} with --{option} {value}\n")
        width, room = max(len(s.name) for s in settings), max(len(json.dumps(s.value)) for s in settings)
        for setting in settings:
            print(f"{setting.name:<{width}}  {json.dumps(setting.value):<{room}}  {_verdict(setting)}".rstrip())
        count = Counter(s.verdict for s in settings)
        print("\n" + ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items())) + "\n")
    return 0


def _verdict(setting: Setting) -> str:
    stated = setting.stated
    if stated is None:
        return "not stated"
    if setting.verdict == "not stated":
        return f"not stated; as {stated.place}"
    if setting.verdict == "same":
        return f"same: {stated.place}"
    return f"differs: {json.dumps(stated.value)} in {stated.place}; {setting.why or 'nothing says why'}"
