"""A session's state as a file (safetensors) and as PyTorch keeps it, parameter by parameter.

The file holds `hidden_state` [features, coordinates] float32 and `clocks` [parameters] int64, the steps each parameter
has taken. Of each parameter PyTorch keeps {"step": a tensor, "hidden_state": a tensor [features, numel], float32}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optserve.wire import tensors


def split(file: bytes, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Each parameter's part of the state; `sizes` are the parameters' numbers of elements, in the session's order."""
    arrays, _ = tensors.decode(file)
    stops = np.cumsum(sizes)[:-1]
    return [
        {"step": torch.tensor(float(clock)), "hidden_state": torch.from_numpy(np.array(part, order="C"))}
        for clock, part in zip(arrays["clocks"], np.split(arrays["hidden_state"], stops, axis=1), strict=True)
    ]


def join(template: bytes, sizes: Sequence[int], parts: Sequence[Mapping[str, Any]]) -> bytes:
    """The file of the parameters' parts; a part that is empty has not been stepped yet.

    Args:
        template: the state of the session that it is for, which says whose state it is.
        sizes: the parameters' numbers of elements.
        parts: what `split` returned.

    Raises:
        ValueError: a hidden state is not of the session's shape.
    """
    arrays, metadata = tensors.decode(template)
    features = len(arrays["hidden_state"])
    hidden = [_hidden_state(part, features, size) for part, size in zip(parts, sizes, strict=True)]
    clocks = np.array([int(part.get("step", 0)) for part in parts], np.int64)
    arrays = {**arrays, "hidden_state": np.concatenate(hidden, axis=1), "clocks": clocks}
    return tensors.encode(arrays, {**metadata, "step": str(clocks.max())})


def _hidden_state(part: Mapping[str, Any], features: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if "hidden_state" not in part:
        return np.zeros((features, size), np.float32)
    hidden: Tensor = part["hidden_state"]
    if hidden.shape != (features, size):
        raise ValueError(
            f"a parameter of {size} elements has the hidden state {tuple(hidden.shape)}, but needs {(features, size)}; "
            "the state_dict is of another model or of other hyperparameters"
        )
    return hidden.to("cpu", torch.float32).numpy()
