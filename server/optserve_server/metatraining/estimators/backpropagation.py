"""Backpropagation through the unrolled trajectory, whole or truncated (Werbos 1990)."""

from dataclasses import dataclass

import torch

from optserve_server.metatraining.estimators.base import MetaGradient, Window, measure
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.tables import MetaLoss
from optserve_server.metatraining.trajectories import Group, unroll
from optserve_server.optimizers import Optimizer, Phi


@dataclass(frozen=True)
class Backpropagation:
    """The exact ∇_φ of a window's meta-loss, with φ's influence on the window's start left out.

    Exact for the whole trajectory where there is but one window. `second_order` keeps ∂∇_t/∂φ.
    """

    meta_loss: MetaLoss
    second_order: bool

    def begin(self, group: Group, optimizer: Optimizer, phi: Phi, generator: torch.Generator) -> Group:
        """The group as it is."""
        return group

    def estimate(
        self, optimizer: Optimizer, phi: Phi, group: Group, window: Window, generator: torch.Generator
    ) -> MetaGradient:
        """The meta-gradient of the group's next window; the group moves on in place."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in phi.items()}
        guard = Guard(group.tasks, group.theta.device)
        losses = unroll(
            group,
            optimizer,
            leaves,
            first_step=window.first_step,
            steps=window.steps,
            horizon=window.horizon,
            generator=generator,
            second_order=self.second_order,
            guard=guard,
        )
        meta_losses, objective, final = measure(self.meta_loss, group, window, losses)
        gradients = guard.gradients(objective, leaves)
        group.detach()
        lost = (~guard.finite).sum()
        return MetaGradient(gradients, meta_losses.detach().mean(), final.detach().mean(), lost, lost)
