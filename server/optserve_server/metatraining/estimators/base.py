"""The contract of an estimator of the meta-gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import Trajectory
from optserve_server.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class MetaGradient:
    """∇_φL over one window: by the names of φ, with the meta-loss and the mean final f of the window."""

    gradients: dict[str, Tensor]
    meta_loss: float
    loss: float


class Estimator(Protocol):
    """Advances a trajectory by one window and estimates ∇_φ of the window's meta-loss, averaged over tasks."""

    def __call__(
        self,
        recipe: Recipe,
        optimizer: Optimizer,
        phi: Mapping[str, Tensor],
        trajectory: Trajectory,
        generator: torch.Generator,
    ) -> MetaGradient:
        """The meta-gradient of the trajectory's next window; the trajectory moves on in place."""
        ...
