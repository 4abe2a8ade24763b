"""Backpropagation through the unrolled trajectory, whole or truncated (Werbos 1990)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from optserve_server.metatraining.estimators.base import MetaGradient, Window
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.meta_losses import bounded, meta_loss
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import Group, unroll
from optserve_server.optimizers import Optimizer


def backpropagation(
    recipe: Recipe,
    optimizer: Optimizer,
    phi: Mapping[str, Tensor],
    group: Group,
    window: Window,
    generator: torch.Generator,
) -> MetaGradient:
    """The exact ∇_φ of the window's meta-loss, without ∂∇_t/∂φ if the recipe drops it."""
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
        second_order=recipe.gradient.second_order,
        guard=guard,
    )
    meta_losses = meta_loss(recipe.meta_loss, losses)
    gradients = guard.gradients(meta_losses, leaves)
    group.detach()
    lost = (~guard.finite).sum()
    return MetaGradient(
        gradients, meta_losses.detach().mean(), bounded(recipe.meta_loss, losses[-1]).detach().mean(), lost, lost
    )
