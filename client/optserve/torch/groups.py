"""What PyTorch's parameter groups hold: parameters and their names, hyperparameters, and what optimizer they are of."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from optserve.torch.group import Version

OF_TORCH = ("foreach", "fused", "capturable", "differentiable")
"""What says how torch itself computes a step."""
_OF_A_GROUP = {"params", "param_names", "name", "initial_lr", "swa_lr"} | {
    f"{bound}_{value}" for bound in ("base", "min", "max") for value in ("lr", "momentum")
}
"""What a group holds besides hyperparameters: PyTorch's own, and what its schedulers keep there."""
_HYPERPARAMETERS = frozenset(
    [
        "alpha",
        "amsgrad",
        "betas",
        "centered",
        "dampening",
        "eps",
        "learning_rate",
        "maximize",
        "momentum",
        "nesterov",
        "weight_decay",
    ]
)
"""What a group means as a hyperparameter, whether its optimizer has it or not. Other keys are the user's own notes."""


def served(group: dict[str, Any]) -> tuple[list[Tensor], list[str]]:
    """The group's parameters without the empty ones, and what they are called: by name, else by their place."""
    names = group.get("param_names") or map(str, range(len(group["params"])))
    found = [(p, name) for p, name in zip(group["params"], names, strict=True) if p.numel()]
    return [parameter for parameter, _ in found], [name for _, name in found]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether both are the very same tensors."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def strange_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of a group's keys that are no hyperparameter of its optimizer, but are meant to be one.

    They are one of some other optimizer, or look like a misspelt one of this.
    """
    near = ["lr", *known]
    meant = (name for name in names if name in _HYPERPARAMETERS or difflib.get_close_matches(name, near))
    return sorted(set(meant) - _OF_A_GROUP)


def version_of(groups: Sequence[Mapping[str, Any]]) -> Version:
    """The one optimizer version of the groups.

    Raises:
        ValueError: they name none, or several.
    """
    if not all(name in group for group in groups for name in Version._fields):
        raise ValueError("the groups name no optimizer version: the state_dict is not one of optserve.torch")
    versions = {Version(*(group[name] for name in Version._fields)) for group in groups}
    if len(versions) != 1:
        raise ValueError(f"the groups have {len(versions)} optimizer versions, but must have one")
    return versions.pop()


def as_torch(value: Any) -> Any:
    """A value out of JSON as PyTorch's optimizers have it."""
    return tuple(value) if isinstance(value, list) else value
