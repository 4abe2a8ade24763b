"""Deterministic safetensors: equal arrays and equal metadata give equal bytes.

The safetensors library writes metadata in random order, so its header is written again here with sorted keys.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

Arrays = dict[str, NDArray[Any]]

_LENGTH_BYTES = 8
_ALIGNMENT = 8


def encode(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise `arrays` by name, with `metadata`, into the bytes of a safetensors file."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return canonical(_save(contiguous, dict(metadata) if metadata else None))


def decode(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """Parse a safetensors file into its arrays, by name, and its metadata.

    Raises:
        ValueError: `data` is not a well-formed safetensors file.
    """
    try:
        arrays = _load(data)
        header, _ = _split(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    return arrays, dict(header.get("__metadata__", {}))


def canonical(data: bytes) -> bytes:
    """Rewrite the header of a safetensors file with sorted metadata; the tensors' bytes stay as they are."""
    header, body = _split(data)
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + body


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return header, data[_LENGTH_BYTES + length :]
