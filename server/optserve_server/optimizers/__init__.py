"""Optimizers m: learned and designed by hand, one contract (`base`), looked up by the name of their architecture."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from optserve_server.naming import nearest, shown
from optserve_server.optimizers.adam import Adam, AdamW
from optserve_server.optimizers.base import (
    Coordinatewise,
    Gradients,
    HiddenState,
    Observations,
    Optimizer,
    Phi,
    Shapes,
    Updates,
    initial_state,
)
from optserve_server.optimizers.hierarchical import Hierarchical
from optserve_server.optimizers.hyperparameters import hyperparameters, with_hyperparameters
from optserve_server.optimizers.lstm import LSTM
from optserve_server.optimizers.rmsprop import RMSprop
from optserve_server.optimizers.rnnprop import RNNprop
from optserve_server.optimizers.sgd import SGD, Momentum, Nesterov
from optserve_server.optimizers.small_fc import SmallFC

__all__ = [
    "HAND_DESIGNED",
    "LEARNED",
    "Coordinatewise",
    "Gradients",
    "HiddenState",
    "Observations",
    "Optimizer",
    "Phi",
    "Shapes",
    "Updates",
    "architecture",
    "build",
    "hyperparameters",
    "initial_state",
    "with_hyperparameters",
]

LEARNED: dict[str, type[Any]] = {cls.kind: cls for cls in (LSTM, RNNprop, Hierarchical, SmallFC)}
HAND_DESIGNED: dict[str, type[Any]] = {cls.kind: cls for cls in (SGD, Momentum, Nesterov, RMSprop, Adam, AdamW)}

_LARGEST = 1e6  # of any number in an architecture: far above what is of use, and far from what float32 cannot hold


def build(description: Mapping[str, Any]) -> Optimizer:
    """The optimizer of an architecture: `{"kind": "lstm", "hidden_size": 20, …}`; absent keys have their defaults.

    Raises:
        ValueError: an unknown kind or key (the message names the nearest), or a value of the wrong type.
    """
    kinds = LEARNED | HAND_DESIGNED
    options = dict(description)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"there is no architecture {kind!r}{nearest(kind, kinds)}; there are {', '.join(kinds)}")
    if kind in HAND_DESIGNED:
        return with_hyperparameters(HAND_DESIGNED[kind](), options)
    cls = kinds[kind]
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"architecture {kind!r} has no {name!r}{nearest(name, known)}; it has {', '.join(known)}")
        _check(name, value, hints[name])
    optimizer: Optimizer = cls(**options)
    return optimizer


def architecture(optimizer: Optimizer) -> dict[str, Any]:
    """The JSON that `build` turns into this optimizer; a hand-designed one leaves out its hyperparameters."""
    if not optimizer.learned:
        return {"kind": optimizer.kind}
    return {"kind": optimizer.kind, **dataclasses.asdict(optimizer)}  # type: ignore[call-overload]


def _check(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"architecture.{name} is {value!r}, but must be one of {', '.join(typing.get_args(hint))}")
        return
    allowed = (int, float) if hint is float else (hint,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"architecture.{name} is {value!r}, but must be {_article(hint)}")
    if not 0 < value <= _LARGEST:
        raise ValueError(f"architecture.{name} is {shown(value)}, but must be above 0 and at most {_LARGEST:g}")


def _article(hint: type[Any] | types.GenericAlias) -> str:
    return "a whole number" if hint is int else "a number"
