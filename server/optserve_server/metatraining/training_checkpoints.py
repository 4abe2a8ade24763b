"""Training checkpoints: everything a run needs to go on bit for bit, as one safetensors file.

A state is a tree of dictionaries, lists, numbers, text and tensors. The tensors become the file's, and the tree with a
name in each one's place becomes JSON in its metadata; nothing in the file is executed when it is read.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optserve.wire import tensors

State: TypeAlias = Any
"""A tree of `dict[str, State]`, `list[State]`, Tensor, int, float, str, bool and None."""

FORMAT = "1"
_TENSOR = "tensor"
_MOST = 2**31  # of one tensor along its first dimension


def encode(state: State) -> bytes:
    """The bytes of a training checkpoint. A tensor expanded along its first dimension is kept once."""
    found: dict[str, Tensor] = {}
    tree = _take_out(state, found)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}
    return tensors.encode(arrays, {"format": FORMAT, "state": json.dumps(tree)})


def decode(data: bytes, device: torch.device) -> State:
    """The state that `encode` was given, its tensors on `device`.

    Raises:
        ValueError: not a training checkpoint, or one of another format.
    """
    arrays, metadata = tensors.decode(data)
    if metadata.get("format") != FORMAT or "state" not in metadata:
        raise ValueError(f"not a training checkpoint of format {FORMAT}")
    found = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
    try:
        return _put_back(json.loads(metadata["state"]), found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the training checkpoint's state cannot be read: {error}") from error


def _take_out(state: State, found: dict[str, Tensor]) -> Any:
    if isinstance(state, Mapping):
        return {name: _take_out(part, found) for name, part in state.items()}
    if isinstance(state, list):
        return [_take_out(part, found) for part in state]
    if not isinstance(state, Tensor):
        return state
    expanded = state.dim() > 0 and state.stride(0) == 0 and state.shape[0] > 1
    name = str(len(found))
    found[name] = state[:1] if expanded else state
    return {_TENSOR: name, "expanded": state.shape[0] if expanded else None}


def _put_back(tree: Any, found: Mapping[str, Tensor]) -> State:
    if isinstance(tree, list):
        return [_put_back(part, found) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR not in tree:
        return {name: _put_back(part, found) for name, part in tree.items()}
    name, size = tree[_TENSOR], tree.get("expanded")
    tensor = found.get(name) if isinstance(name, str) else None
    if tensor is None:
        raise ValueError("it names a tensor that is not in the file")
    if size is None:
        return tensor
    if type(size) is not int or not 0 < size < _MOST or tensor.shape[:1] != (1,):
        raise ValueError(f"the tensor {name!r} cannot be expanded")
    return tensor.expand(size, *tensor.shape[1:])
