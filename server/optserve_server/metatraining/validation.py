"""Validation: the definition of L(φ) on held-out tasks, the same ones every time."""

import math

import torch
from torch import Tensor

from optserve_server.metatraining.meta_losses import bounded
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.tables import TaskShare, Validation
from optserve_server.metatraining.trajectories import Group, draw_groups, unroll
from optserve_server.optimizers import Optimizer, Phi
from optserve_server.tasks.base import Split

VALIDATION_TASKS = 48
_SEED = 1_000_003  # apart from every recipe's training seed in practice; held-out data are apart by construction
_LAST = 50  # the final loss is the mean over the last fiftieth of the steps, for a minibatch's is noisy


@torch.no_grad()
def held_out_loss(recipe: Recipe, optimizer: Optimizer, phi: Phi) -> float:
    """What φ is judged by: L(φ) at the recipe's longest T, or what its table `validation` asks for."""
    if recipe.validation is None:
        return held_out_meta_loss(recipe, optimizer, phi, recipe.unroll.longest)
    settings, total = recipe.validation, 0.0
    for horizon in settings.horizons:
        for share in settings.tasks:
            total += share.weight * _log_quotient(recipe, settings, share, optimizer, phi, horizon)
    return math.exp(total / (len(settings.horizons) * sum(share.weight for share in settings.tasks)))


def _log_quotient(
    recipe: Recipe, settings: Validation, share: TaskShare, optimizer: Optimizer, phi: Phi, horizon: int
) -> float:
    """The mean of ln((f(θ_T) + floor f(θ_0))/(f(θ_0) + floor f(θ_0))) over the tasks of one share at one T."""
    generator = torch.Generator(next(iter(phi.values())).device).manual_seed(_SEED)
    trained_on = share.family in {one.family for one in recipe.tasks}
    half: Split = "held-out" if trained_on else "train"
    (group,) = draw_groups([share], [settings.instances], optimizer, generator, half)
    losses = _unrolled(group, optimizer, phi, horizon, generator)
    initial = group.initial_loss
    assert initial is not None
    final = losses[-math.ceil(horizon / _LAST) :].mean(dim=0)
    quotients = final.where(final.isfinite(), math.inf) / initial
    logs = torch.log((quotients.clamp(0, recipe.meta_loss.ceiling) + settings.floor) / (1 + settings.floor))
    return logs.double().mean().item()


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
        losses = _unrolled(group, optimizer, phi, horizon, generator)
        assert group.initial_loss is not None
        final = bounded(recipe.meta_loss, losses[-1], group.initial_loss)
        total += final.mean().double() * (share.weight / whole)
    return total.item()


def _unrolled(group: Group, optimizer: Optimizer, phi: Phi, horizon: int, generator: torch.Generator) -> Tensor:
    """f after each of T steps, `[T, tasks]`."""
    return unroll(
        group,
        optimizer,
        phi,
        first_step=0,
        steps=horizon,
        horizon=horizon,
        generator=generator,
        second_order=False,
    )
