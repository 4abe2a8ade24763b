"""Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682), as its authors' package `schedulefree` computes it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optserve_server.optimizers.base import CoordinateState, Coordinatewise, Observations, Phi, Updates
from optserve_server.optimizers.moments import bias_correction


@dataclass(frozen=True)
class ScheduleFreeAdamW(Coordinatewise):
    """Gradients are taken at y, Adam without momentum moves z, and what is learned is x, the mean of all z.

    z_{t+1} = z_t − lr · ∇f(y_t)/(√v̂_t + ε)
    x_{t+1} = x_t + (z_{t+1} − x_t)/(t+1)
    y_{t+1} = (1 − β_1) z_{t+1} + β_1 x_{t+1}

    θ is y. The hidden state is v and (z − y)/lr, which does not depend on a constant lr; so updates are proportional to
    lr, and these are those of lr = 1. There is no weight decay, which is the package's default.
    """

    kind: ClassVar[str] = "schedule-free-adamw"
    learned: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    features: ClassVar[tuple[str, ...]] = ("exp_avg_sq", "lead")

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: there is no φ."""
        return {}

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """y_{t+1} − y_t."""
        gradients, clock = observations.gradients, observations.clock
        beta_1, beta_2 = self.betas
        exp_avg_sq = beta_2 * state[..., 0, :] + (1 - beta_2) * gradients.square()
        direction = gradients / ((exp_avg_sq / bias_correction(beta_2, clock, gradients)).sqrt() + self.eps)
        lead = state[..., 1, :]
        share = (1 / (clock + 1)).to(gradients.dtype)
        updates = share * lead - (1 - beta_1 * (1 - share)) * direction
        following = torch.stack([exp_avg_sq, (1 - share) * (lead - beta_1 * direction)], dim=-2)
        return updates, following

    def averaged(self, theta: Tensor, lead: Tensor) -> Tensor:
        """x of y, `theta`, and z − y, `lead`."""
        return theta + (1 - 1 / self.betas[0]) * lead
