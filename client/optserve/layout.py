"""The parameters of a session in their declared order: dictionaries of arrays to one flat array and back."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optserve.errors import GradientsInvalid, ProblemError, RequestInvalid
from optserve.memory import Memory
from optserve.wire.bodies import Parameter
from optserve.wire.gradients import STORAGE, narrow, widen

Shape: TypeAlias = tuple[int, ...]
Float32: TypeAlias = NDArray[np.float32]


class Role(NamedTuple):
    """What arrays are in an error message, and which error it is."""

    noun: str
    error: type[ProblemError]


GRADIENTS = Role("gradient", GradientsInvalid)
VALUES = Role("value", RequestInvalid)


class Layout:
    """Which numbers of the flat array belong to which parameter. `dtype` is that of the wire."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: str) -> None:
        self.shapes = dict(shapes)
        self.sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.dtype = dtype
        self._storage = STORAGE[dtype]
        self._memory = Memory(sum(self.sizes.values()) * self._storage.itemsize)

    def flatten(self, arrays: Mapping[str, Any], skip: Collection[str] = (), role: Role = GRADIENTS) -> NDArray[Any]:
        """The arrays as they travel: concatenated in declared order, without those in `skip`, in the wire's dtype.

        Raises:
            GradientsInvalid: a name too many or too few, a wrong shape, or something that is not real numbers
                (the error of `role`).
        """
        self._check_names(arrays, skip, role)
        flat = np.empty(self.length(skip), np.float32)
        start = 0
        for name, shape in self.shapes.items():
            if name in skip:
                continue
            array = _real(arrays[name], f"the {role.noun} of {name!r}", role, parameter=name)
            if array.shape != shape:
                raise role.error(
                    f"the {role.noun} of {name!r} has the shape {array.shape}, but was declared as {shape}",
                    parameter=name,
                )
            end = start + self.sizes[name]
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and the server says where
                flat[start:end].reshape(shape)[...] = array
            start = end
        return narrow(flat, self.dtype)

    def accept(self, flat: NDArray[Any], skip: Collection[str] = ()) -> NDArray[Any]:
        """A flat array as it travels; float32 is not copied.

        Raises:
            GradientsInvalid: an unknown name in `skip`, not one-dimensional, a wrong length, or not real numbers.
        """
        self._check_known(skip, GRADIENTS)
        array, length = _real(flat, "the flat gradient", GRADIENTS), self.length(skip)
        if array.shape != (length,):
            raise GradientsInvalid(
                f"the flat gradient has the shape {array.shape}, but the session's parameters"
                f"{' without the skipped' if skip else ''} need ({length},)"
            )
        with np.errstate(over="ignore"):  # as in `flatten`
            single = np.ascontiguousarray(array, np.float32)
        return narrow(single, self.dtype)

    def length(self, skip: Collection[str]) -> int:
        """How many numbers travel when `skip` is left out."""
        return sum(self.sizes.values()) - sum(self.sizes[name] for name in skip)

    def room(self, skip: Collection[str]) -> memoryview:
        """Memory for the content of a reply, not initialised, and nobody else's."""
        return self._memory.lend()[: self.length(skip) * self._storage.itemsize].data

    def read(self, content: bytearray | memoryview) -> Float32:
        """The flat array of a reply: float32, for the caller to write to; float32 on the wire is not copied."""
        return widen(np.frombuffer(content, self._storage), self.dtype)

    def split(self, flat: Float32, skip: Collection[str]) -> dict[str, Float32]:
        """Views of the flat array by parameter name, without those in `skip`."""
        arrays: dict[str, Float32] = {}
        start = 0
        for name, shape in self.shapes.items():
            if name not in skip:
                end = start + self.sizes[name]
                arrays[name] = flat[start:end].reshape(shape)
                start = end
        return arrays

    def _check_names(self, arrays: Mapping[str, Any], skip: Collection[str], role: Role) -> None:
        self._check_known(arrays, role)
        self._check_known(skip, role)
        for name in self.shapes:
            if name in skip and name in arrays:
                raise role.error(f"{name!r} has a {role.noun} and is to be skipped; leave one out", parameter=name)
            if name not in skip and name not in arrays:
                mend = f"; if it has none this time, pass skip=[{name!r}]" if role is GRADIENTS else ""
                raise role.error(f"the {role.noun} of {name!r} is missing{mend}", parameter=name)

    def _check_known(self, names: Collection[str], role: Role) -> None:
        for name in names:
            if name not in self.shapes:
                raise role.error(
                    f"the session has no parameter {name!r}; it has {_listed(self.shapes)}", parameter=name
                )


def declare(parameters: Mapping[str, Any]) -> list[Parameter]:
    """The parameters as the request to create a session names them, from shapes or from arrays.

    Raises:
        TypeError: something is neither.
    """
    return [Parameter(name, list(_shape(name, value))) for name, value in parameters.items()]


def _shape(name: str, value: Any) -> Shape:
    shape: Sequence[Any] = value.shape if hasattr(value, "shape") else value
    try:
        return tuple(dimension.__index__() for dimension in shape)
    except (AttributeError, TypeError):
        raise TypeError(
            f"parameter {name!r} is {value!r}, but must be a shape such as (64, 20) or (20,), or an array"
        ) from None


def _real(value: Any, what: str, role: Role, **fields: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise role.error(f"{what} is of dtype {array.dtype}, but must be real numbers", **fields)
    return array


def _listed(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:8]]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
