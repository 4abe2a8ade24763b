"""What the optimizers of a group are told instead of the truth, so that they learn to do with less."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optserve_server.metatraining.tables import Augmentation
from optserve_server.metatraining.training_checkpoints import State

_OFFSETS = (-1.0, 2.0)  # times |f(θ_0)|
_EXPONENT = 18.0  # of factors on gradients: eight decades up and down
_PAUSE = (5.0, 200.0)  # steps without a gradient


@dataclass(frozen=True)
class Told:
    """Whether a group is told its `loss` and its `horizon`; `offsets` of losses in units of |f(θ_0)|, and `factors` of
    gradients, both `[tasks]`; `pauses`, the steps from which on and before which gradients are 0, `[2, tasks]`.

    None stands for what changes nothing.
    """

    loss: bool = True
    horizon: bool = True
    offsets: Tensor | None = None
    factors: Tensor | None = None
    pauses: Tensor | None = None

    def losses(self, losses: Tensor, initial: Tensor) -> Tensor:
        """f(θ_t) as it is told, `[inner loops]`; `initial` is f(θ_0)."""
        return losses if self.offsets is None else losses + _repeated(self.offsets, len(losses)) * initial.abs()

    def gradients(self, gradients: Tensor, clock: Tensor) -> Tensor:
        """∇_t as it is told at step t = `clock`, `[1]`; `[inner loops, n]`."""
        if self.factors is not None:
            gradients = gradients * _repeated(self.factors, len(gradients)).unsqueeze(1)
        if self.pauses is not None:
            paused = (self.pauses[0] <= clock) & (clock < self.pauses[1])
            gradients = torch.where(_repeated(paused, len(gradients)).unsqueeze(1), 0.0, gradients)
        return gradients

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return dict(vars(self))


def draw_told(
    augmentation: Augmentation, tasks: int, steps: int, host: torch.Generator, device: torch.Generator
) -> Told | None:
    """Draw what the tasks of a trajectory of so many steps tell; None if the recipe wants nothing but the truth."""
    asked = augmentation
    if not (asked.hidden_loss or asked.hidden_horizon or asked.loss_offset or asked.gradient_scaling or asked.pauses):
        return None
    hides_loss, hides_horizon = torch.rand(2, generator=host).tolist()

    def some(share: float, low: float, high: float) -> Tensor | None:
        drawn = torch.empty(2, tasks, device=device.device).uniform_(generator=device)
        chosen = drawn[0] < share
        return torch.where(chosen, low + (high - low) * drawn[1], 0.0) if chosen.any() else None

    offsets = some(asked.loss_offset, *_OFFSETS)
    exponents = some(asked.gradient_scaling, -_EXPONENT, _EXPONENT)
    lengths, begun = some(asked.pauses, *_PAUSE), steps * torch.rand(tasks, generator=device, device=device.device)
    return Told(
        loss=hides_loss >= asked.hidden_loss,
        horizon=hides_horizon >= asked.hidden_horizon,
        offsets=offsets,
        factors=None if exponents is None else exponents.exp(),
        pauses=None if lengths is None else torch.stack((begun, begun + lengths)),
    )


def _repeated(of_tasks: Tensor, loops: int) -> Tensor:
    """`[tasks]` as `[inner loops]`, of which each task has equally many."""
    return of_tasks.repeat(loops // len(of_tasks))
