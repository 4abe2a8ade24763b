"""The contract of an optimizer: (g_t, h_{t+1}) = m(∇_t, h_t; φ).

Every optimizer, learned or designed by hand, is a frozen dataclass of its architecture with one pure function, `step`.
State goes in and comes out; nothing is kept inside, so the same `step` serves sessions page by page and is unrolled
under autograd in meta-training.

All arrays are feature-major and end in the coordinates: gradients are `[…, n]`, their hidden state `[…, features, n]`.
The leading dimensions are pages when serving and tasks when meta-training.

Most optimizers are `Coordinatewise`: every coordinate has its own hidden state, and no coordinate sees another. The
rest also keep arrays for each parameter tensor (Adafactor's rows and columns, a scheduler) or for the whole session,
and are told where one tensor ends and the next begins.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

PAGE = 256
"""Coordinates of a page, the piece in which hidden states are kept and served."""

Phi = Mapping[str, Tensor]
"""The optimizer's own weights φ by name; empty for an optimizer designed by hand."""

Gradients = Tensor  # [..., n], float32 or float64
Updates = Tensor  # [..., n], the same dtype: θ_{t+1} = θ_t + g_t
CoordinateState = Tensor  # [..., features, n], the same dtype
Shapes = tuple[tuple[int, ...], ...]
"""The shapes of the parameter tensors whose coordinates stand one after another in the n."""


def sizes(shapes: Shapes) -> tuple[int, ...]:
    """How many coordinates each parameter tensor has."""
    return tuple(map(math.prod, shapes))


class HiddenState(NamedTuple):
    """h_t: what each coordinate remembers, and by name what each parameter tensor and the whole session do.

    An array of tensors is `[…, rows, Σ size]`, each tensor's own columns in declared order; one of the session is
    `[…, rows, 1]`. There are none where the optimizer is coordinatewise.
    """

    coordinates: CoordinateState
    arrays: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Observations:
    """What an optimizer is told at one step, beside its hidden state.

    `gradients` is ∇_t, `[…, n]`. `clock` counts the steps each coordinate has taken before this one, as floats that
    broadcast to the gradients: 0 at the first step; a coordinate whose parameter was skipped stands still.
    `parameters` is θ_t, `[…, n]`, where the loop has sent it.

    `loss` is f(θ_t) and `horizon` is T, the number of steps that the loop plans, each `[…]`, where they are known.
    `shapes` are the parameter tensors; a coordinatewise optimizer has no use for them.
    """

    gradients: Gradients
    clock: Tensor
    parameters: Tensor | None = None
    loss: Tensor | None = None
    horizon: Tensor | None = None
    shapes: Shapes = ()


@runtime_checkable
class Optimizer(Protocol):
    """One optimizer m. Implementations are frozen dataclasses; their fields are the architecture."""

    kind: ClassVar[str]
    """The architecture's name, as recipes and weight files write it."""
    learned: ClassVar[bool]
    """Whether φ is meta-trained."""
    coordinatewise: ClassVar[bool]
    """Whether h_t is that of the coordinates alone, and no coordinate sees another."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what each coordinate remembers, in the order of the rows of `HiddenState.coordinates`."""
        ...

    def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """What a parameter tensor of that shape remembers beside its coordinates: by name, rows and size."""
        ...

    @property
    def session_arrays(self) -> dict[str, int]:
        """What the session as a whole remembers: by name, rows."""
        ...

    @property
    def uses(self) -> frozenset[str]:
        """What it can use beside ∇_t: any of `loss`, `horizon`, `parameters`."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it cannot do without: a subset of `uses`."""
        ...

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """φ before any meta-training, float32."""
        ...

    def step(self, phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        """The update g_t and the next hidden state, out of place."""
        ...


class Coordinatewise(ABC):
    """Base of the optimizers that treat every coordinate alike and by itself."""

    coordinatewise: ClassVar[bool] = True

    def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """Nothing."""
        return {}

    @property
    def session_arrays(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def step(self, phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        """The update g_t and the next hidden state, out of place."""
        updates, coordinates = self.step_coordinates(phi, observations, state.coordinates)
        return updates, HiddenState(coordinates, {})

    @abstractmethod
    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """The same, of the coordinates' state alone."""


def initial_state(
    optimizer: Optimizer, shapes: Shapes, lead: tuple[int, ...] = (), *, like: Tensor | None = None
) -> HiddenState:
    """h_0 = 0 for parameter tensors of these shapes, under leading dimensions `lead`.

    Of the dtype and device of `like` (float32, CPU).
    """
    template = torch.empty(0) if like is None else like
    coordinates = sum(sizes(shapes))
    arrays = {
        name: template.new_zeros((*lead, rows, size)) for name, (rows, size) in array_sizes(optimizer, shapes).items()
    }
    return HiddenState(template.new_zeros((*lead, len(optimizer.features), coordinates)), arrays)


def array_sizes(optimizer: Optimizer, shapes: Shapes) -> dict[str, tuple[int, int]]:
    """By name, rows and size of all arrays that parameter tensors of these shapes have, and then the session."""
    found: dict[str, tuple[int, int]] = {}
    for shape in shapes:
        for name, (rows, size) in optimizer.tensor_arrays(shape).items():
            found[name] = (rows, found.get(name, (rows, 0))[1] + size)
    return {**found, **{name: (rows, 1) for name, rows in optimizer.session_arrays.items()}}
