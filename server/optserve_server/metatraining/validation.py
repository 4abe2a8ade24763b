"""Validation: the definition of L(φ) on held-out tasks, the same ones every time."""

import torch

from optserve_server.metatraining.meta_losses import bounded
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import draw_groups, unroll
from optserve_server.optimizers import Optimizer, Phi

VALIDATION_TASKS = 48
_SEED = 1_000_003  # apart from every recipe's training seed in practice; held-out data are apart by construction


@torch.no_grad()
def held_out_meta_loss(
    recipe: Recipe, optimizer: Optimizer, phi: Phi, horizon: int, tasks: int = VALIDATION_TASKS
) -> float:
    """L(φ) = E_f[f(θ_T)]: the mean final loss over held-out tasks at T = `horizon`.

    The tasks are shared out among the families by weight, and neither rescaled nor otherwise augmented. A trajectory
    that is not finite counts as the meta-loss's ceiling.
    """
    device = next(iter(phi.values())).device
    generator = torch.Generator(device).manual_seed(_SEED)
    whole = sum(share.weight for share in recipe.tasks)
    counts = [max(1, round(tasks * share.weight / whole)) for share in recipe.tasks]
    groups = draw_groups(recipe.tasks, counts, optimizer, generator, "held-out")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for share, group in zip(recipe.tasks, groups, strict=True):
        losses = unroll(
            group,
            optimizer,
            phi,
            first_step=0,
            steps=horizon,
            horizon=horizon,
            generator=generator,
            second_order=False,
        )
        assert group.initial_loss is not None
        final = bounded(recipe.meta_loss, losses[-1], group.initial_loss)
        total += final.mean().double() * (share.weight / whole)
    return total.item()
