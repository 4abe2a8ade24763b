"""How the parameters θ of an optimizee lie in pages: all of them in declared order, one coordinate after another."""

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optserve_server.naming import nearest, shown
from optserve_server.optimizers.base import PAGE
from optserve_server.optimizers.serving import pages_for
from optserve_server.sessions.errors import GradientsInvalid, RequestInvalid

MAX_PARAMETERS = 10_000
MAX_DIMENSIONS = 32
MAX_NAME_CHARACTERS = 256

_SLOT_BYTES, _DIMENSION_BYTES = 320, 40  # of a parameter, beside its name; of one of its dimensions


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """One tensor of θ; `offset` counts coordinates from the session's first."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def stop(self) -> int:
        """The coordinate after its last."""
        return self.offset + self.size

    def index(self, position: int) -> list[int]:
        """The element at `position` of the flattened tensor, as an index along each dimension."""
        found: list[int] = []
        for size in reversed(self.shape):
            position, place = divmod(position, size)
            found.insert(0, place)
        return found

    def element(self, index: Sequence[int]) -> str:
        """`w[3, 7]`, as messages write it."""
        return f"{self.name}[{', '.join(map(str, index))}]" if index else self.name


@dataclass(frozen=True)
class Layout:
    """The parameters of one session."""

    parameters: tuple[ParameterSlot, ...]

    @cached_property
    def coordinates(self) -> int:
        """How many numbers θ has."""
        return self.parameters[-1].stop

    @cached_property
    def own_bytes(self) -> int:
        """The memory that the parameters' names and shapes take, about."""
        return sum(_SLOT_BYTES + sys.getsizeof(one.name) + _DIMENSION_BYTES * len(one.shape) for one in self.parameters)

    @cached_property
    def pages(self) -> int:
        """How many pages its hidden state takes."""
        return pages_for(self.coordinates)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the parameters."""
        return tuple(parameter.shape for parameter in self.parameters)

    @cached_property
    def names(self) -> dict[str, int]:
        """The place of each parameter in the declared order."""
        return {parameter.name: place for place, parameter in enumerate(self.parameters)}

    @cached_property
    def complete(self) -> "Selection":
        """Every parameter."""
        return Selection(self, self.parameters, frozenset())

    def select(self, skip: Sequence[str]) -> "Selection":
        """Every parameter but those named in `skip`.

        Raises:
            GradientsInvalid: a name that is no parameter's.
        """
        if not skip:
            return self.complete
        for name in skip:
            if name not in self.names:
                raise GradientsInvalid(
                    f"`skip` names {shown(name)}, which is no parameter of this session{nearest(name, self.names)}.",
                    parameter=name[:MAX_NAME_CHARACTERS],
                )
        skipped = frozenset(skip)
        return Selection(self, tuple(one for one in self.parameters if one.name not in skipped), skipped)

    def locate(self, coordinate: int) -> tuple[ParameterSlot, list[int]]:
        """The parameter that a coordinate belongs to, and its index there."""
        place = bisect_right(self.parameters, coordinate, key=lambda parameter: parameter.offset) - 1
        parameter = self.parameters[place]
        return parameter, parameter.index(coordinate - parameter.offset)


@dataclass(frozen=True)
class Selection:
    """The parameters that have a gradient at one step."""

    layout: Layout
    parameters: tuple[ParameterSlot, ...]
    skipped: frozenset[str]

    @cached_property
    def coordinates(self) -> int:
        """How many numbers the step's body carries."""
        return sum(parameter.size for parameter in self.parameters)

    def active(self) -> Tensor | None:
        """Which coordinates step, bool `[pages, 256]`; None if all do."""
        if not self.skipped:
            return None
        mask = torch.zeros(self.layout.pages * PAGE, dtype=torch.bool)
        for parameter in self.parameters:
            mask[parameter.offset : parameter.stop] = True
        return mask.view(self.layout.pages, PAGE)


def lay_out(parameters: Sequence[tuple[str, Sequence[int]]], max_coordinates: int) -> Layout:
    """Lay out parameters, given as names and shapes.

    Raises:
        RequestInvalid: no or too many parameters, a bad or repeated name, a bad shape, more than `max_coordinates` in
            all; names the parameter.
    """
    if not 1 <= len(parameters) <= MAX_PARAMETERS:
        raise RequestInvalid(
            f"A session has 1 to {MAX_PARAMETERS} parameters, but {len(parameters)} are given.", "/parameters"
        )
    slots: list[ParameterSlot] = []
    offset = 0
    names: set[str] = set()
    for place, (name, shape) in enumerate(parameters):
        _check_name(name, names, f"/parameters/{place}/name")
        size = _checked_size(name, shape, max_coordinates - offset, f"/parameters/{place}/shape")
        slots.append(ParameterSlot(name, tuple(shape), offset, size))
        names.add(name)
        offset += size
    return Layout(tuple(slots))


def _check_name(name: str, taken: set[str], pointer: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise RequestInvalid(
            f"{shown(name)} is no name for a parameter: a name has 1 to {MAX_NAME_CHARACTERS} printable characters.",
            pointer,
            parameter=name[:MAX_NAME_CHARACTERS],
        )
    if name in taken:
        raise RequestInvalid(f"Two parameters are named {shown(name)}.", pointer, parameter=name)


def _checked_size(name: str, shape: Sequence[int], room: int, pointer: str) -> int:
    if len(shape) > MAX_DIMENSIONS:
        raise RequestInvalid(
            f"{shown(name)} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} can be served.",
            pointer,
            parameter=name,
        )
    for dimension in shape:
        if dimension < 1:
            raise RequestInvalid(
                f"{shown(name)} has a dimension of {shown(dimension)}; each is at least 1. Leave empty parameters out.",
                pointer,
                parameter=name,
            )
    size = math.prod(shape)
    if size > room:
        raise RequestInvalid(
            f"{shown(name)} has {shown(size)} elements, but there is room for {room} more: "
            "one step of the session would not fit in `max_body_bytes`.",
            pointer,
            parameter=name,
        )
    return size
