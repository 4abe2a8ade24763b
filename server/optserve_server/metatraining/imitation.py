"""Imitation of Adam at the start of meta-training (Chen et al. 2020, arXiv 2010.09089, section 3.2)."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining.training_checkpoints import State
from optserve_server.optimizers import Observations, Updates
from optserve_server.optimizers.adam import Adam

_FARTHEST = 1e6  # so that an inner loop that diverges has a bounded distance, as it has a bounded loss


@dataclass
class Teacher:
    """Adam, told the gradients of the learned optimizer's own trajectories.

    `moments` is its hidden state, in the layout of the learner's: `[…, 2, n]`. `updates` and `targets` are g_t and a_t
    of the window under way.
    """

    learning_rate: float
    moments: Tensor
    updates: list[Updates] = field(default_factory=list)
    targets: list[Updates] = field(default_factory=list)

    @classmethod
    def of(cls, coordinates: Tensor, learning_rate: float) -> Self:
        """A teacher at the start of inner loops whose hidden state is laid out like `coordinates`."""
        return cls(learning_rate, coordinates.new_zeros((*coordinates.shape[:-2], 2, coordinates.shape[-1])))

    def see(self, observations: Observations, updates: Updates) -> None:
        """Take in one step: what the learner saw and what it did."""
        seen = Observations(observations.gradients.detach(), observations.clock)
        target, self.moments = Adam(lr=self.learning_rate).step_coordinates({}, seen, self.moments)
        self.updates.append(updates)
        self.targets.append(target)

    def distance(self, inner_loops: int) -> Tensor:
        """((g_t − a_t)/α)² averaged over the window's steps and the coordinates, `[inner loops]`; then begin anew."""
        difference = (torch.stack(self.updates) - torch.stack(self.targets)) / self.learning_rate
        self.updates, self.targets = [], []
        distance = difference.square().view(len(difference), inner_loops, -1).mean(dim=(0, 2))
        return torch.nan_to_num(distance, nan=_FARTHEST).clamp(max=_FARTHEST)

    def to_state(self) -> State:
        """All of it between two windows, for a training checkpoint."""
        return {"learning_rate": self.learning_rate, "moments": self.moments}
