"""A session's state as a file (safetensors) and as PyTorch keeps it, parameter by parameter.

The file holds `hidden_state` [features, coordinates] float32 and `clocks` [parameters] int64, the steps each parameter
has taken. Optimizers that keep more have it there as `tensors.NAME` [rows, all parameters' columns] and `session.NAME`
[rows, 1], float32; how many columns each parameter has is in the metadata.

Of each parameter PyTorch keeps {"step": a tensor, "hidden_state": a tensor [features, numel], "arrays": by the names in
the file, its own columns and a copy of what is the session's}, the latter only where there is any.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire import tensors

Float32s = NDArray[np.float32]

HELD_BY_SERVER = ("hidden_state", "arrays")
"""What a parameter's part of the state holds beside its step."""

_OF_TENSORS, _OF_SESSION = "tensors.", "session."


def split(file: bytes, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Each parameter's part of the state; `sizes` are the parameters' numbers of elements, in the session's order."""
    arrays, metadata = tensors.decode(file)
    columns = _columns(metadata)
    parts: list[dict[str, Any]] = [
        {"step": torch.tensor(float(clock)), "hidden_state": _tensor(hidden)}
        for clock, hidden in zip(arrays["clocks"], _cut(arrays["hidden_state"], sizes), strict=True)
    ]
    own = {name: _cut(arrays[_OF_TENSORS + name], counts) for name, counts in columns.items()}
    shared = {name: array for name, array in arrays.items() if name.startswith(_OF_SESSION)}
    if own or shared:
        for place, part in enumerate(parts):
            mine = {_OF_TENSORS + name: cut[place] for name, cut in own.items()}
            part["arrays"] = {name: _tensor(array) for name, array in (mine | shared).items()}
    return parts


def join(template: bytes, sizes: Sequence[int], parts: Sequence[Mapping[str, Any]]) -> bytes:
    """The file of the parameters' parts; a part that is empty has not been stepped yet.

    What is the session's is taken from the part that has been stepped most.

    Args:
        template: the state of the session that it is for, which says whose state it is.
        sizes: the parameters' numbers of elements.
        parts: what `split` returned.

    Raises:
        ValueError: a hidden state is not of the session's shape.
    """
    arrays, metadata = tensors.decode(template)
    clocks = [int(part.get("step", 0)) for part in parts]
    latest = parts[int(np.argmax(clocks))]
    joined = {**arrays, "clocks": np.array(clocks, np.int64)}
    hidden = [part.get("hidden_state") for part in parts]
    joined["hidden_state"] = _joined("hidden_state", hidden, arrays["hidden_state"], sizes)
    for name, counts in _columns(metadata).items():
        entry = _OF_TENSORS + name
        joined[entry] = _joined(entry, [part.get("arrays", {}).get(entry) for part in parts], arrays[entry], counts)
    for name, array in arrays.items():
        if name.startswith(_OF_SESSION):
            joined[name] = _joined(name, [latest.get("arrays", {}).get(name)], array, [array.shape[1]])
    return tensors.encode(joined, {**metadata, "step": str(max(clocks))})


class _Guarded:
    """What PyTorch must not convert to its parameter's dtype while it loads a state_dict."""

    def __init__(self, held: Any) -> None:
        self.held = held


def guarded(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """The `state` of a state_dict, in which what the server holds is kept from conversion until `unguard`.

    Raises:
        ValueError: a parameter's part has no hidden state.
    """
    parts = {index: part for index, part in states.items() if isinstance(part, dict)}
    for index, part in parts.items():
        if "hidden_state" not in part:
            raise ValueError(
                f"the state of parameter {index} has no 'hidden_state': the state_dict is not one of optserve.torch"
            )
        parts[index] = {**part, **{name: _Guarded(part[name]) for name in HELD_BY_SERVER if name in part}}
    return {**states, **parts}


def unguard(states: Mapping[Any, Any]) -> None:
    """Put back, in place, what `guarded` kept from conversion."""
    for part in states.values():
        for name, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, _Guarded):
                part[name] = value.held


def _joined(name: str, cuts: Sequence[Tensor | None], whole: Float32s, sizes: Sequence[int]) -> Float32s:
    """The parameters' cuts side by side, in the shape of `whole`; one that is missing is zeros."""
    checked: list[Float32s] = []
    for place, (cut, size) in enumerate(zip(cuts, sizes, strict=True)):
        shape = (len(whole), size)
        if cut is not None and cut.shape != shape:
            raise ValueError(
                f"{name} of parameter {place} has the shape {tuple(cut.shape)}, but needs {shape}; "
                "the state_dict is of another model or of other hyperparameters"
            )
        checked.append(np.zeros(shape, np.float32) if cut is None else cut.to("cpu", torch.float32).numpy())
    return np.concatenate(checked, axis=1)


def _columns(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = json.loads(metadata.get("columns", "{}"))
    return columns


def _cut(array: Float32s, sizes: Sequence[int]) -> list[Float32s]:
    return np.split(array, np.cumsum(sizes)[:-1], axis=1)


def _tensor(array: Float32s) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))
