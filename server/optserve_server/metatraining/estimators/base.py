"""The contract of an estimator of the meta-gradient."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import Optimizer, Phi


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
    """Estimates ∇_φ of the meta-loss, averaged over a group's tasks, window by window. A frozen dataclass."""

    def begin(self, group: Group, optimizer: Optimizer, phi: Phi, generator: torch.Generator) -> Group:
        """The group, at θ_0, in the form in which `estimate` takes it; it may draw what lasts for a trajectory."""
        ...

    def estimate(
        self, optimizer: Optimizer, phi: Phi, group: Group, window: Window, generator: torch.Generator
    ) -> MetaGradient:
        """The meta-gradient of the group's next window; the group moves on in place."""
        ...
