"""The contract of an estimator of the meta-gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class Window:
    """`steps` steps of a trajectory from `first_step` of `horizon` on."""

    first_step: int
    steps: int
    horizon: int


@dataclass(frozen=True, slots=True)
class MetaGradient:
    """∇_φ of a group's mean meta-loss over one window, by the names of φ.

    Scalars on the group's device, so that nothing waits for it: the mean `meta_loss`, the mean f at the window's end as
    `loss`, how many tasks have a trajectory that is `non_finite`, and how many have no other, so that they are `lost`.
    """

    gradients: dict[str, Tensor]
    meta_loss: Tensor
    loss: Tensor
    non_finite: Tensor
    lost: Tensor


class Estimator(Protocol):
    """Advances a group by one window and estimates ∇_φ of the window's meta-loss, averaged over its tasks."""

    def __call__(
        self,
        recipe: Recipe,
        optimizer: Optimizer,
        phi: Mapping[str, Tensor],
        group: Group,
        window: Window,
        generator: torch.Generator,
    ) -> MetaGradient:
        """The meta-gradient of the group's next window; the group moves on in place."""
        ...
