"""RMSprop (Hinton 2012, lecture 6e), equal to `torch.optim.RMSprop`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from optserve_server.optimizers.base import CoordinateState, Observations, Phi, Updates
from optserve_server.optimizers.hyperparameters import require_range
from optserve_server.optimizers.sgd import HandDesigned


@dataclass(frozen=True)
class RMSprop(HandDesigned):
    """g_t = −lr · ∇_t/(√v_t + ε) with v_t = α v_{t−1} + (1 − α) ∇_t²; `centered` takes the mean's square from v_t."""

    kind: ClassVar[str] = "rmsprop"

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha)
        require_range("eps", self.eps)
        require_range("momentum", self.momentum)

    @property
    def features(self) -> tuple[str, ...]:
        """v, then the momentum buffer and the mean gradient where they are asked for."""
        return (
            "square_avg",
            *(("momentum_buffer",) if self.momentum else ()),
            *(("grad_avg",) if self.centered else ()),
        )

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step of `torch.optim.RMSprop`."""
        gradients = self.descent_gradients(observations)
        square_avg = self.alpha * state[..., 0, :] + (1 - self.alpha) * gradients.square()
        following, variance = [square_avg], square_avg
        if self.centered:
            mean = torch.lerp(state[..., -1, :], gradients, 1 - self.alpha)
            variance = (square_avg - mean.square()).clamp(min=0)
        direction = gradients / (variance.sqrt() + self.eps)
        if self.momentum:
            direction = self.momentum * state[..., 1, :] + direction
            following.append(direction)
        if self.centered:
            following.append(mean)
        return -self.lr * direction, torch.stack(following, dim=-2)
