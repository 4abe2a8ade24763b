"""The whole state of a session as a safetensors file, out and in.

`hidden_state` is `[features, coordinates]` float32, `clocks` is `[parameters]` int64 (the steps each parameter has
taken), and `parameters` is θ, `[coordinates]` float32, where the session holds it. An optimizer that is not
coordinatewise also has `tensors.NAME`, `[rows, Σ columns]` float32, each parameter's columns in declared order (the
metadata's `columns` counts them, by name and parameter), and `session.NAME`, `[rows, 1]`. What an update guard
remembers is in such arrays too, whose names begin with `guard`. The metadata says whose state it is.
Equal states give equal bytes, so the SHA-256 of the file is the state's digest.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire import tensors
from optserve_server.naming import shown
from optserve_server.optimizers.base import PAGE
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import StateMalformed, StateMismatch
from optserve_server.sessions.guarding import GUARD_ARRAYS, is_memory_of_guard
from optserve_server.sessions.plan import MAX_STEPS

FORMAT = "1"
_METADATA_BYTES = 64 << 10  # of a header without the parameters' names and shapes, generously
_DTYPES = {"F32": "<f4", "I64": "<i8"}
_OF_ARRAYS = ("tensors.", "session.")


def encode(awake: Awake) -> memoryview:
    """The session's state as the bytes of a file, each number copied once."""
    layout = awake.layout
    entries: dict[str, tuple[str, list[int]]] = {
        "hidden_state": ("F32", [awake.arena.features, layout.coordinates]),
        "clocks": ("I64", [len(layout.parameters)]),
    }
    arrays = {entry: awake.all_arrays[name] for name, entry in _entries(awake).items()}
    entries |= {name: ("F32", list(array.shape)) for name, array in arrays.items()}
    if awake.theta is not None:
        entries["parameters"] = ("F32", [layout.coordinates])
    beginning, places = tensors.header(entries, _metadata(awake))
    file = np.empty(max(place.stop for place in places.values()), np.uint8)
    file[: len(beginning)] = np.frombuffer(beginning, np.uint8)
    hidden_state = _view(file, places["hidden_state"], "<f4").reshape(awake.arena.features, layout.coordinates)
    awake.arena.read_into(awake.pages, hidden_state)
    _view(file, places["clocks"], "<i8")[:] = awake.clocks
    for name, array in arrays.items():
        _view(file, places[name], "<f4")[:] = array.numpy().reshape(-1)
    if awake.theta is not None:
        _view(file, places["parameters"], "<f4")[:] = awake.theta.numpy().reshape(-1)[: layout.coordinates]
    return file.data


def digest(awake: Awake) -> str:
    """The SHA-256 of the session's state, in hexadecimal."""
    return hashlib.sha256(encode(awake)).hexdigest()


def decode(awake: Awake, data: bytes) -> None:
    """Put a state into the session, which goes on from that state's step.

    Raises:
        StateMalformed: `data` is no session's state.
        StateMismatch: it is the state of another optimizer version or of other parameters.
        StateTooLarge: there is no room for the state's θ.
    """
    state = _parse(data, longest_header(awake))
    _require_match(awake, state)
    theta = None if state.theta is None else _paged(awake, state.theta)
    awake.hold_theta(theta)
    awake.arena.write(awake.pages, state.hidden_state)
    found = {name: state.arrays[entry] for name, entry in _entries(awake).items() if entry in state.arrays}
    arrays = {name: torch.from_numpy(array.copy()) for name, array in found.items()}
    awake.go_on_from(state.step, state.clocks, arrays)


def longest_header(awake: Awake) -> int:
    """How many bytes the header of a state of this session can have at most."""
    # A character is escaped twice, for the list of parameters is JSON inside the header's JSON.
    described = sum(64 + 16 * len(one.name) + 24 * len(one.shape) for one in awake.layout.parameters)
    return described + len(json.dumps(awake.array_columns)) + _METADATA_BYTES


@dataclass(frozen=True, slots=True)
class _State:
    step: int
    metadata: dict[str, str]
    hidden_state: NDArray[np.float32]  # [features, coordinates]
    clocks: NDArray[np.int64]  # [parameters]
    arrays: dict[str, NDArray[np.float32]]  # by the name in the file, [rows, columns]
    theta: NDArray[np.float32] | None  # [coordinates]


def _metadata(awake: Awake) -> dict[str, str]:
    columns = awake.array_columns
    return {
        **({"columns": json.dumps(columns)} if columns else {}),
        "format": FORMAT,
        "step": str(awake.next_step),
        "optimizer": awake.version.name,
        "optimizer_version": str(awake.version.number),
        "optimizer_sha256": awake.version.sha256,
        "features": json.dumps(awake.optimizer.features),
        "parameters": json.dumps([{"name": one.name, "shape": one.shape} for one in awake.layout.parameters]),
    }


def _entries(awake: Awake) -> dict[str, str]:
    """The names that the arrays have in a file."""
    of_tensors, of_session = _OF_ARRAYS
    columns = awake.array_columns
    return {name: (of_tensors if name in columns else of_session) + name for name in awake.array_sizes}


def _parse(data: bytes, longest_header: int) -> _State:
    try:
        places, metadata = tensors.index(data, longest_header)
    except ValueError as error:
        raise StateMalformed(f"The body is no session's state: {error}.") from error
    if metadata.get("format") != FORMAT:
        raise StateMalformed(
            f"The body is no session's state that this server reads: its metadata has the `format` "
            f"{shown(metadata.get('format', 'none'))}, not {FORMAT!r}."
        )
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdigit() and len(step) <= 16 and int(step) <= MAX_STEPS):
        raise StateMalformed(f"The `step` of the state's metadata is {shown(step)}, which is no step.")
    return _State(
        step=int(step),
        metadata=metadata,
        hidden_state=_array(data, places, "hidden_state", "F32", 2),
        clocks=_array(data, places, "clocks", "I64", 1).copy(),
        arrays={name: _array(data, places, name, "F32", 2) for name in places if name.startswith(_OF_ARRAYS)},
        theta=_array(data, places, "parameters", "F32", 1) if "parameters" in places else None,
    )


def _array(data: bytes, places: dict[str, tensors.Entry], name: str, dtype: str, dimensions: int) -> NDArray[Any]:
    place = places.get(name)
    if place is None or place.dtype != dtype or len(place.shape) != dimensions:
        raise StateMalformed(f"The state lacks the tensor `{name}`, of dtype {dtype} and with {dimensions} dimensions.")
    numbers = np.frombuffer(data, np.uint8)[place.start : place.stop]
    return numbers.view(_DTYPES[dtype]).reshape(place.shape)


def _require_match(awake: Awake, state: _State) -> None:
    expected = _metadata(awake)
    for key in ("optimizer_sha256", "features", "parameters"):
        if state.metadata.get(key) != expected[key]:
            raise StateMismatch(_difference(key, state.metadata, awake), mismatch=key)
    layout = awake.layout
    shapes = [state.hidden_state.shape, state.clocks.shape]
    if shapes != [(awake.arena.features, layout.coordinates), (len(layout.parameters),)]:
        raise StateMalformed("The state's tensors have not the shapes that its metadata says.")
    _require_arrays(awake, state)
    if state.theta is not None and state.theta.shape != (layout.coordinates,):
        raise StateMalformed("The state's `parameters` have not the shape that its metadata says.")
    if (state.clocks < 0).any() or (state.clocks > state.step).any():
        raise StateMalformed("The state's `clocks` are not between 0 and its step.")


def _require_arrays(awake: Awake, state: _State) -> None:
    sizes = {entry: awake.array_sizes[name] for name, entry in _entries(awake).items()}
    shapes_found = {name: array.shape for name, array in state.arrays.items()}
    if not any(_is_guards(name) for name in shapes_found):  # a session without a guard had it: this one's begins
        sizes = {name: size for name, size in sizes.items() if not _is_guards(name)}
    elif awake.guard is None:  # one with a guard had it
        shapes_found = {name: shape for name, shape in shapes_found.items() if not _is_guards(name)}
    if shapes_found != sizes:
        wanted = ", ".join(f"`{name}` {list(size)}" for name, size in sizes.items()) or "none"
        raise StateMalformed(f"The state's arrays of tensors and of the session are others than this one's: {wanted}.")
    for name, array in state.arrays.items():
        if name in sizes and _is_guards(name) and not is_memory_of_guard(name.partition(".")[2], array):
            raise StateMalformed(f"The state's `{name}` is nothing that an update guard remembers.")


def _is_guards(entry: str) -> bool:
    return entry.partition(".")[2] in GUARD_ARRAYS


def _difference(key: str, metadata: dict[str, str], awake: Awake) -> str:
    if key == "optimizer_sha256":
        theirs = f"{metadata.get('optimizer', '?')}@{metadata.get('optimizer_version', '?')}"
        return (
            f"The state is of {shown(theirs)} (sha256 {shown(metadata.get(key, '?'))}), but this session holds "
            f"{awake.version.name}@{awake.version.number} (sha256 {awake.version.sha256}). "
            "Create a session with the state's version."
        )
    if key == "features":
        return (
            f"The state is made of {shown(metadata.get(key, '?'))}, but this session's of "
            f"{json.dumps(awake.optimizer.features)}. Create the session with the state's hyperparameters."
        )
    return "The state is of other parameters; create a session with the same names and shapes in the same order."


def _paged(awake: Awake, values: NDArray[np.float32]) -> Tensor:
    theta = torch.zeros(awake.layout.pages * PAGE)
    theta.numpy()[: awake.layout.coordinates] = values
    return theta.view(-1, PAGE)


def _view(file: NDArray[np.uint8], place: tensors.Entry, dtype: str) -> NDArray[Any]:
    return file[place.start : place.stop].view(dtype)
