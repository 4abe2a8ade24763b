"""The contract of an estimator of the meta-gradient."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optserve_server.metatraining.meta_losses import bounded, meta_loss
from optserve_server.metatraining.tables import MetaLoss
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import Optimizer, Phi


@dataclass(frozen=True, slots=True)
class Window:
    """`steps` steps of a trajectory from `first_step` of `horizon` on.

    `imitation` is λ, the weight of the distance from the teacher.
    """

    first_step: int
    steps: int
    horizon: int
    imitation: float = 0.0


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


def measure(settings: MetaLoss, group: Group, window: Window, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the losses `[steps, inner loops]` of a window come to, each `[inner loops]`.

    The meta-losses; what φ is to minimise, which is these and the distances from the teacher where there is one; and
    f at the window's end, bounded.
    """
    assert group.initial_loss is not None
    final = bounded(settings, losses[-1], group.initial_loss)
    meta_losses = meta_loss(settings, losses, group.initial_loss, first_step=window.first_step, horizon=window.horizon)
    if group.teacher is None:
        return meta_losses, meta_losses, final
    return meta_losses, meta_losses + window.imitation * group.teacher.distance(len(group.theta)), final


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
