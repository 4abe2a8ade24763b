"""Weight files: φ as safetensors, whose metadata says what optimizer it is of and where it came from."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire import tensors
from optserve_server.optimizers import architecture, build
from optserve_server.optimizers.base import Optimizer, Phi


def encode(optimizer: Optimizer, phi: Phi, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a weight file; equal φ and metadata give equal bytes. `architecture` is added to the metadata."""
    arrays = {name: weight.detach().cpu().to(torch.float32).numpy() for name, weight in phi.items()}
    return tensors.encode(arrays, {**(metadata or {}), "architecture": json.dumps(architecture(optimizer))})


def decode(data: bytes) -> tuple[Optimizer, dict[str, Tensor], dict[str, str]]:
    """The optimizer, its φ (float32, on the CPU) and the metadata of a weight file.

    Raises:
        ValueError: not safetensors, no architecture, or weights that are not the architecture's; says which.
    """
    arrays, metadata = tensors.decode(data)
    if "architecture" not in metadata:
        raise ValueError('the metadata lacks "architecture", the JSON of the optimizer these weights are of')
    try:
        description = json.loads(metadata["architecture"])
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata's architecture is not JSON: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"the metadata's architecture is {metadata['architecture'][:80]}, but must be a JSON object")
    optimizer = build(description)
    expected = optimizer.initial_phi(torch.Generator())
    _check_names(set(expected), set(arrays))
    phi = {name: _weight(name, arrays[name], expected[name]) for name in expected}
    return optimizer, phi, metadata


def _check_names(expected: set[str], given: set[str]) -> None:
    if missing := sorted(expected - given):
        raise ValueError(f"the weights lack {_listed(missing)}")
    if unknown := sorted(given - expected):
        raise ValueError(f"the weights have {_listed(unknown)}, which the architecture has not")


def _listed(names: list[str]) -> str:
    listed = ", ".join(name[:80] for name in names[:20])
    return listed if len(names) <= 20 else f"{listed} and {len(names) - 20} more"


def _weight(name: str, array: NDArray[Any], expected: Tensor) -> Tensor:
    if array.dtype != np.float32:
        raise ValueError(f"{name} is {array.dtype}, but must be float32")
    if array.shape != tuple(expected.shape):
        raise ValueError(f"{name} has the shape {list(array.shape)}, but must have {list(expected.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return torch.from_numpy(array.copy())
