"""Validation: the definition of L(φ) on held-out tasks, the same ones every time."""

import torch

from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import draw_groups, unroll
from optserve_server.optimizers import Optimizer, Phi

VALIDATION_TASKS = 48
_SEED = 1_000_003  # apart from every recipe's training seed in practice; held-out data are apart by construction


def held_out_meta_loss(recipe: Recipe, optimizer: Optimizer, phi: Phi, tasks: int = VALIDATION_TASKS) -> float:
    """L(φ) = E_f[f(θ_T)]: the mean final loss over held-out tasks at the recipe's longest horizon.

    The tasks are shared out among the families by weight, and neither rescaled nor otherwise augmented.
    """
    generator = torch.Generator().manual_seed(_SEED)
    whole = sum(share.weight for share in recipe.tasks)
    counts = [max(1, round(tasks * share.weight / whole)) for share in recipe.tasks]
    total = 0.0
    with torch.no_grad():
        for share, group in zip(
            recipe.tasks, draw_groups(recipe.tasks, counts, optimizer, generator, "held-out"), strict=True
        ):
            losses = unroll(
                group,
                optimizer,
                phi,
                first_step=0,
                steps=recipe.unroll.longest,
                horizon=recipe.unroll.longest,
                generator=generator,
                second_order=False,
            )
            total += losses[-1].mean().item() * share.weight / whole
    return total
