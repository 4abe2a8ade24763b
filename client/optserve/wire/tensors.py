"""Deterministic safetensors: equal arrays and equal metadata give equal bytes.

The safetensors library writes metadata in random order, so its header is written again here with sorted keys.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

Arrays = dict[str, NDArray[Any]]

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_DIMENSIONS = 32


def encode(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise `arrays` by name, with `metadata`, into the bytes of a safetensors file."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
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


# --- without copies ---------------------------------------------------------------------------------------------------

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one number of each dtype, by the name safetensors gives it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies in a safetensors file; `start` and `stop` count bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header(
    entries: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Entry]]:
    """The beginning of a file that holds tensors of these dtypes and shapes, one after another in this order.

    Returns it with the place of each tensor, so that the caller writes the numbers straight to where they belong.
    """
    description: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        description[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(description, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    beginning = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return beginning, _entries(description, len(beginning))


def index(data: bytes | memoryview, longest_header: int | None = None) -> tuple[dict[str, Entry], dict[str, str]]:
    """Where each tensor lies in a safetensors file, and the file's metadata; no tensor is copied.

    A header of more than `longest_header` bytes is not parsed, for what comes of it takes some 30 times as much memory.

    Raises:
        ValueError: `data` is not a well-formed safetensors file; says where it is wrong.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ValueError("not a safetensors file: its header is cut off")
    if longest_header is not None and length > longest_header:
        raise ValueError(f"not such a safetensors file: its header has {length} bytes, more than {longest_header}")
    start = _LENGTH_BYTES + length
    try:
        description = json.loads(bytes(data[_LENGTH_BYTES:start]), object_pairs_hook=_without_repeats)
        metadata = description.get("__metadata__", {})
        entries = _entries(description, start)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a safetensors file: its header cannot be read ({error})") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("not a safetensors file: its metadata is not made of strings")
    _require_contiguous(entries, start, len(data))
    return entries, metadata


def _entries(description: Mapping[str, Any], start: int) -> dict[str, Entry]:
    entries = {}
    for name, entry in description.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            if not (type(first) is type(last) is int and isinstance(entry["dtype"], str)):
                raise TypeError(f"the entry of {name!r}")
            entries[name] = Entry(entry["dtype"], tuple(entry["shape"]), start + first, start + last)
    return entries


def _require_contiguous(entries: Mapping[str, Entry], start: int, stop: int) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.dtype not in ITEM_BYTES:
            raise ValueError(f"not a safetensors file: {name!r} is of the unknown dtype {entry.dtype!r}")
        if not all(type(size) is int and size >= 0 for size in entry.shape):
            raise ValueError(f"not a safetensors file: the shape of {name!r} is not made of whole numbers")
        size = _elements(name, entry.shape, stop - start) * ITEM_BYTES[entry.dtype]
        if (entry.start, entry.stop) != (position, position + size):
            raise ValueError(f"not a safetensors file: {name!r} does not lie where its shape and dtype say")
        position = entry.stop
    if position != stop:
        raise ValueError(f"not a safetensors file: it ends {stop - position:+d} bytes from where its header says")


def _elements(name: str, shape: tuple[int, ...], room: int) -> int:
    # Checked before they are multiplied: the product of many large sizes takes minutes.
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"not a safetensors file: {name!r} has more than {_MAX_DIMENSIONS} dimensions")
    if 0 in shape:
        return 0
    if max(shape, default=1) > room:
        raise ValueError(f"not a safetensors file: {name!r} does not lie where its shape and dtype say")
    return math.prod(shape)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
