"""The contract of an optimizer: (g_t, h_{t+1}) = m(∇_t, h_t; φ).

Every optimizer, learned or designed by hand, is a frozen dataclass of its architecture with one pure function, `step`.
State goes in and comes out; nothing is kept inside, so the same `step` serves sessions page by page and is unrolled
under autograd in meta-training.

All arrays are feature-major and end in the coordinates: gradients are `[…, n]`, the hidden state `[…, features, n]`.
The leading dimensions are pages when serving and tasks when meta-training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

PAGE = 256
"""Coordinates of a page, the piece in which hidden states are kept and served."""

Phi = Mapping[str, Tensor]
"""The optimizer's own weights φ by name; empty for an optimizer designed by hand."""

Gradients = Tensor  # [..., n], float32 or float64
Updates = Tensor  # [..., n], the same dtype: θ_{t+1} = θ_t + g_t
HiddenState = Tensor  # [..., features, n], the same dtype


@dataclass(frozen=True, slots=True)
class Observations:
    """What an optimizer is told at one step, beside its hidden state.

    `gradients` is ∇_t, `[…, n]`. `clock` counts the steps each coordinate has taken before this one, as floats that
    broadcast to the gradients: 0 at the first step; a coordinate whose parameter was skipped stands still.
    `parameters` is θ_t, `[…, n]`, where the loop has sent it.
    """

    gradients: Gradients
    clock: Tensor
    parameters: Tensor | None = None


@runtime_checkable
class Optimizer(Protocol):
    """One optimizer m. Implementations are frozen dataclasses; their fields are the architecture."""

    kind: ClassVar[str]
    """The architecture's name, as recipes and weight files write it."""
    learned: ClassVar[bool]
    """Whether φ is meta-trained."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the hidden state's features, in the order of its rows."""
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


def initial_state(optimizer: Optimizer, *batch: int, like: Tensor | None = None) -> HiddenState:
    """h_0 = 0 for `batch = (…, n)`: zeros `[…, features, n]`, of the dtype and device of `like` (float32, CPU)."""
    *lead, coordinates = batch
    template = torch.empty(0) if like is None else like
    return template.new_zeros((*lead, len(optimizer.features), coordinates))
