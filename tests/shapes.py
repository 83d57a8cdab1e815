# SPDX-License-Identifier: Apache-2.0
"""Shapes written in annotations are checked whenever tests run: jaxtyping's import hook, with a decorator of our own.

The hook's own decorator binds and checks every call twice, and builds two checkers for every function each time its definition
runs: half the time of a small training step, and five seconds for the imports. This one lets beartype check arguments and result
in one scope of shapes. Functions inside functions are left alone; none of them names a shape.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_type_hints

import jaxtyping
from beartype import beartype

PACKAGES = [f"rekindle.{folder}" for folder in ("objectives", "views", "networks", "adapters", "methods", "evaluation")]
_SCOPE = jaxtyping.jaxtyped("context")


def install() -> None:
    """Check shapes in the modules of PACKAGES that are imported from now on."""
    setattr(jaxtyping, "jaxtyped", _decorator)  # noqa: B010 - what the hook looks up in every module
    jaxtyping.install_import_hook(PACKAGES, "beartype.beartype")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and the result of every call, each shape's letters meaning the same throughout the call."""
    resolved = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    function.__annotations__ = resolved
    checks = beartype(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with _SCOPE:
            return checks(*arguments, **named)

    return call


def _decorator(*, typechecker: object) -> Callable[[Any], Any]:
    def decorated(given: Any) -> Any:
        if inspect.isclass(given):
            if dataclasses.is_dataclass(given) and isinstance(given.__init__, FunctionType):
                setattr(given, "__init__", checked(given.__init__))  # noqa: B010
            return given
        assert isinstance(given, FunctionType), f"{given} is not a plain function where it is defined"
        return given if "<locals>" in given.__qualname__ else checked(given)

    return decorated


def _resolved(hint: object, function: Callable[..., Any]) -> object:
    """A hint as it is written, or Any where a name of it is known to type checkers alone."""

    def carrier(value: object) -> None: ...

    carrier.__annotations__ = {"value": hint}
    try:
        return get_type_hints(carrier, function.__globals__, include_extras=True)["value"]
    except NameError:
        assert "[Tensor" not in str(hint), (
            f"{function.__qualname__}: the shape {hint} cannot be read, so nothing checks it"
        )
        return Any
