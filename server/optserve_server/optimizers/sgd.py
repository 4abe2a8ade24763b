"""Gradient descent, with Polyak's and Nesterov's momentum, equal to `torch.optim.SGD`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optserve_server.optimizers.base import CoordinateState, Coordinatewise, Observations, Phi, Updates
from optserve_server.optimizers.hyperparameters import require_range


@dataclass(frozen=True)
class HandDesigned(Coordinatewise):
    """What all hand-designed optimizers share: no φ, and θ needed only to decay it."""

    learned: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset({"parameters"})

    lr: float = 1e-3
    weight_decay: float = 0.0
    maximize: bool = False

    def __post_init__(self) -> None:
        require_range("lr", self.lr)
        require_range("weight_decay", self.weight_decay)

    @property
    def needs(self) -> frozenset[str]:
        """θ, where there is weight decay."""
        return frozenset({"parameters"}) if self.weight_decay else frozenset()

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: there is no φ."""
        return {}

    def descent_gradients(self, observations: Observations) -> Tensor:
        """∇_t of the loss to be minimised, with L2 weight decay: ∇_t + λθ_t."""
        gradients = -observations.gradients if self.maximize else observations.gradients
        if self.weight_decay:
            gradients = gradients + self.weight_decay * self.parameters(observations)
        return gradients

    @staticmethod
    def parameters(observations: Observations) -> Tensor:
        """θ_t.

        Raises:
            ValueError: the loop has not sent it.
        """
        if observations.parameters is None:
            raise ValueError("weight_decay needs the parameters' values")
        return observations.parameters


@dataclass(frozen=True)
class SGD(HandDesigned):
    """g_t = −lr · b_t with b_0 = ∇_0, b_t = μ b_{t−1} + (1 − τ) ∇_t; without momentum μ, b_t = ∇_t and no state."""

    kind: ClassVar[str] = "sgd"

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("momentum", self.momentum)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")

    @property
    def features(self) -> tuple[str, ...]:
        """The momentum buffer, where there is momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step of `torch.optim.SGD`."""
        gradients = self.descent_gradients(observations)
        if not self.momentum:
            return -self.lr * gradients, state
        buffer = self.momentum * state[..., 0, :] + (1 - self.dampening) * gradients
        buffer = torch.where(observations.clock == 0, gradients, buffer)
        direction = gradients + self.momentum * buffer if self.nesterov else buffer
        return -self.lr * direction, buffer.unsqueeze(-2)


@dataclass(frozen=True)
class Momentum(SGD):
    """`sgd` with a momentum of 0.9."""

    kind: ClassVar[str] = "momentum"

    momentum: float = 0.9


@dataclass(frozen=True)
class Nesterov(Momentum):
    """`momentum` with Nesterov's look-ahead."""

    kind: ClassVar[str] = "nesterov"

    nesterov: bool = True
