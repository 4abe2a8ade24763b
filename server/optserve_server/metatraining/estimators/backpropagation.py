"""Backpropagation through the unrolled trajectory, whole or truncated (Werbos 1990)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from optserve_server.metatraining.estimators.base import MetaGradient
from optserve_server.metatraining.meta_losses import meta_loss
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import Trajectory, unroll
from optserve_server.optimizers import Optimizer


def backpropagation(
    recipe: Recipe,
    optimizer: Optimizer,
    phi: Mapping[str, Tensor],
    trajectory: Trajectory,
    generator: torch.Generator,
) -> MetaGradient:
    """The exact ∇_φ of the window's meta-loss, without ∂∇_t/∂φ if the recipe drops it."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in phi.items()}
    steps = min(recipe.unroll.truncation or trajectory.horizon, trajectory.horizon - trajectory.step)
    tasks = sum(group.tasks for group in trajectory.groups)
    total = torch.zeros(())
    final = 0.0
    for group in trajectory.groups:
        group.detach()
        losses = unroll(
            group,
            optimizer,
            leaves,
            first_step=trajectory.step,
            steps=steps,
            horizon=trajectory.horizon,
            generator=generator,
            second_order=recipe.gradient.second_order,
        )
        total = total + meta_loss(recipe.meta_loss, losses).sum() / tasks
        final += losses[-1].sum().item() / tasks
    gradients = torch.autograd.grad(total, list(leaves.values()))
    trajectory.step += steps
    return MetaGradient(dict(zip(leaves, gradients, strict=True)), total.item(), final)
