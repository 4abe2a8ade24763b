"""Meta-losses: one number to minimise from the losses of a window of trajectories."""

import torch
from torch import Tensor

from optserve_server.metatraining.tables import MetaLoss


def bounded(settings: MetaLoss, losses: Tensor) -> Tensor:
    """f(θ) up to the ceiling, which is also what a loss counts that is not finite."""
    finite = losses.where(losses.isfinite(), settings.ceiling)
    return finite.clamp(-settings.ceiling, settings.ceiling)


def meta_loss(settings: MetaLoss, losses: Tensor) -> Tensor:
    """The meta-loss of each task, `[tasks]`, from f(θ_t) after each step of a window, `[steps, tasks]`."""
    losses = bounded(settings, losses)
    if settings.kind == "final":
        return losses[-1]
    if settings.kind == "sum":
        return losses.sum(dim=0)
    return torch.log(losses + settings.floor).sum(dim=0)
