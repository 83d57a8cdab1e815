# SPDX-License-Identifier: Apache-2.0
"""Option trees: nested mappings checked against pydantic models, with errors that name the nearest known option. Torch-free."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from rekindle.core.errors import RequestError
from rekindle.core.options import Options

Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], values: Mapping[str, Any], where: str, *, groups: Collection[str] = ()) -> Model:
    """Validate a tree against its model; pydantic's errors become one RequestError.

    Args:
        model: of the tree.
        values: the tree.
        where: it stands, for messages.
        groups: names of which the model has one as a group of options (methods); the others are known, and out of place.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain_validation(model, error, where, groups=groups) from None


def explain_validation(
    model: type[BaseModel], error: ValidationError, where: str, *, groups: Collection[str] = ()
) -> RequestError:
    """Turn a pydantic error into one RequestError; `groups` as for `checked`."""
    return RequestError("\n".join(_explain(model, e, where, groups) for e in error.errors()))


def _explain(model: type[BaseModel], error: Any, where: str, groups: Collection[str]) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        if len(path) == 1 and name in groups:
            chosen = next(n for n in model.model_fields if n in groups)
            return f"{where}: {name} holds options of the method {name}, and this run's is {chosen}; leave them out"
        known = list(_model_at(model, path[:-1]).model_fields)
        if len(path) == 1:
            known += list(groups)
        nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        everywhere = [k for k in leaves(model().model_dump()) if k.split(".")[-1] == path[-1]]
        hint = f"did you mean {'.'.join([*path[:-1], nearest[0]])}?" if nearest else f"known here: {', '.join(known)}"
        if everywhere:
            hint = f"did you mean {everywhere[0]}?"
        return f"{where}: unknown option {name}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], dict | Options) and not error["msg"].startswith("Input"):
        return f"{where}: {name}: {message}" if name else f"{where}: {message}"
    return f"{where}: {name} = {error['input']!r}: {message}"


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not candidates:
            return model
        model = candidates[0]
    return model


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def nested(flat: Mapping[str, object]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


def lay_over(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay one tree of options over another, in place; nothing of `layer` is shared afterwards."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            lay_over(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
