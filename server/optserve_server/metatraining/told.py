"""What the optimizers of a group are told instead of the truth, so that they learn to do with less."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optserve_server.metatraining.tables import Augmentation
from optserve_server.metatraining.training_checkpoints import State

_OFFSETS = (-1.0, 2.0)  # times |f(θ_0)|
_EXPONENT = 18.0  # of factors on gradients: eight decades up and down


@dataclass(frozen=True)
class Told:
    """Whether a group is told its `loss` and its `horizon`; `offsets` of losses in units of |f(θ_0)|, and `factors` of
    gradients, both `[tasks]`."""

    loss: bool
    horizon: bool
    offsets: Tensor
    factors: Tensor

    def losses(self, losses: Tensor, initial: Tensor) -> Tensor:
        """f(θ_t) as it is told, `[inner loops]`; `initial` is f(θ_0)."""
        return losses + _repeated(self.offsets, len(losses)) * initial.abs()

    def gradients(self, gradients: Tensor) -> Tensor:
        """∇_t as it is told, `[inner loops, n]`."""
        return gradients * _repeated(self.factors, len(gradients)).unsqueeze(1)

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return {"loss": self.loss, "horizon": self.horizon, "offsets": self.offsets, "factors": self.factors}


def draw_told(augmentation: Augmentation, tasks: int, host: torch.Generator, device: torch.Generator) -> Told | None:
    """Draw what a trajectory's tasks tell; None if the recipe wants nothing but the truth."""
    asked = augmentation
    if not (asked.hidden_loss or asked.hidden_horizon or asked.loss_offset or asked.gradient_scaling):
        return None
    hides_loss, hides_horizon = torch.rand(2, generator=host).tolist()

    def some(share: float, low: float, high: float) -> Tensor:
        drawn = torch.empty(2, tasks, device=device.device).uniform_(generator=device)
        return torch.where(drawn[0] < share, low + (high - low) * drawn[1], 0.0)

    offsets = some(asked.loss_offset, *_OFFSETS)
    factors = some(asked.gradient_scaling, -_EXPONENT, _EXPONENT).exp()
    return Told(hides_loss >= asked.hidden_loss, hides_horizon >= asked.hidden_horizon, offsets, factors)


def _repeated(of_tasks: Tensor, loops: int) -> Tensor:
    """`[tasks]` as `[inner loops]`, of which each task has equally many."""
    return of_tasks.repeat(loops // len(of_tasks))
