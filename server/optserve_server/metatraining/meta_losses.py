"""Meta-losses: one number to minimise from the losses of a window of trajectories."""

import torch
from torch import Tensor

from optserve_server.metatraining.admission import LARGEST
from optserve_server.metatraining.tables import Growth, MetaLoss

_SMALLEST = 1e-30  # of an f(θ_0) that others are measured by


def bounded(settings: MetaLoss, losses: Tensor, initial: Tensor) -> Tensor:
    """f(θ) up to the ceiling, which is also what a loss counts that is not finite.

    `losses` is `[…, tasks]` and `initial`, f(θ_0), `[tasks]`: with `relative` the ceiling is in its units.
    """
    ceiling = settings.ceiling * _unit(settings, initial)
    return torch.clamp(losses.where(losses.isfinite(), ceiling), -ceiling, ceiling)


def meta_loss(settings: MetaLoss, losses: Tensor, initial: Tensor, *, first_step: int, horizon: int) -> Tensor:
    """The meta-loss of each task, `[tasks]`, over a window of a trajectory of `horizon` steps.

    `losses` is f(θ_t) after each step of the window, `[steps, tasks]`, and `initial` is f(θ_0), `[tasks]`.
    """
    losses = bounded(settings, losses, initial) / _unit(settings, initial)
    if settings.kind == "final":
        return losses[-1]
    if settings.kind == "log":
        losses = torch.log(losses + settings.floor)
    if settings.weights is not None:
        losses = weights(settings.weights, first_step, len(losses), horizon, losses).unsqueeze(1) * losses
    return losses.sum(dim=0)


def weights(settings: tuple[float, ...] | Growth, first_step: int, steps: int, horizon: int, like: Tensor) -> Tensor:
    """w_t of the `steps` steps t = `first_step` + 1, …, `[steps]`, of the dtype and on the device of `like`."""
    if isinstance(settings, Growth):
        t = torch.arange(first_step + 1, first_step + steps + 1, dtype=torch.float64, device=like.device)
        return (settings.first + (settings.last - settings.first) * (t / horizon) ** settings.power).to(like.dtype)
    return like.new_tensor(settings[first_step : first_step + steps])


def _unit(settings: MetaLoss, initial: Tensor) -> Tensor:
    """What losses are measured in, `[tasks]`: f(θ_0), or 1."""
    if not settings.relative:
        return torch.ones_like(initial)
    return initial.where((initial > _SMALLEST) & (initial < LARGEST), 1.0)
