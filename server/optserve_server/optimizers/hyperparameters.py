"""Hyperparameters of the hand-designed optimizers: their dataclasses' fields, with PyTorch's names and defaults."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from optserve_server.naming import nearest, shown
from optserve_server.optimizers.base import Optimizer

_LARGEST = sys.float_info.max


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """The hyperparameters of a hand-designed optimizer as JSON would hold them; empty for a learned one."""
    if optimizer.learned:
        return {}
    values = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(optimizer)}  # type: ignore[arg-type]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def with_hyperparameters(optimizer: Optimizer, changes: Mapping[str, Any]) -> Optimizer:
    """The same optimizer with some hyperparameters changed.

    Raises:
        ValueError: an unknown name (the message names the nearest), a value of the wrong type or out of its range.
    """
    if not changes:
        return optimizer
    if optimizer.learned:
        raise ValueError(
            f"{optimizer.kind!r} is learned and takes no hyperparameters, but {sorted(changes)[0]!r} was given; "
            "leave `hyperparameters` empty"
        )
    defaults = hyperparameters(optimizer)
    for name in changes:
        if name not in defaults:
            raise ValueError(
                f"{optimizer.kind!r} has no hyperparameter {shown(name)}{nearest(name, defaults)}; "
                f"it takes {', '.join(defaults)}"
            )
    converted = {name: _convert(name, value, getattr(optimizer, name)) for name, value in changes.items()}
    return dataclasses.replace(optimizer, **converted)  # type: ignore[type-var]


def require_range(name: str, value: float, *, low: float = 0.0, below: float = math.inf) -> None:
    """Check low ≤ value < below.

    Raises:
        ValueError: naming the hyperparameter and its range.
    """
    if not low <= value < below:
        limit = f"at least {low:g}" + ("" if below == math.inf else f" and below {below:g}")
        raise ValueError(f"{name} is {value:g}, but must be {limit}")


def _convert(name: str, value: Any, present: Any) -> Any:
    if isinstance(present, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shown(value)}, but must be true or false")
        return value
    if isinstance(present, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(present):
            raise ValueError(f"{name} is {shown(value)}, but must be a list of {len(present)} numbers")
        return tuple(_number(name, item) for item in value)
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{name} is {shown(value)}, but must be a finite number")
    return float(value)
