"""Meta-losses: one number to minimise from the losses of a window of trajectories."""

import torch
from torch import Tensor

from optserve_server.metatraining.recipes import MetaLoss


def meta_loss(kind: MetaLoss, losses: Tensor) -> Tensor:
    """The meta-loss of each task, `[tasks]`, from f(θ_t) after each step of a window, `[steps, tasks]`."""
    if kind.kind == "final":
        return losses[-1]
    if kind.kind == "sum":
        return losses.sum(dim=0)
    return torch.log(losses + kind.floor).sum(dim=0)
