"""What the evolution strategies share: pairs φ + ε and φ − ε, and the difference of their meta-losses.

Each task has `pairs` pairs of its own, and the two of a pair run on the same θ_0, data and minibatches, so that all
that tells them apart is ε. For ε ~ N(0, σ²) the mean of ε (L(φ + ε) − L(φ − ε)) / 2σ² is the gradient of L smoothed by
that normal distribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optserve_server.metatraining.admission import LARGEST
from optserve_server.metatraining.estimators.base import MetaGradient, Window, measure
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.tables import MetaLoss
from optserve_server.metatraining.trajectories import Group, unroll
from optserve_server.optimizers import Optimizer, Phi

Noise = dict[str, Tensor]
"""Perturbations of φ by its names, each `[pairs·tasks, …]`, pair by pair."""


@dataclass(frozen=True)
class Antithetic(ABC):
    """Base of the evolution strategies: the particles of a task are φ + ε of each pair, then φ − ε, then `others`."""

    others: ClassVar[int] = 0
    """Particles of the unperturbed φ."""

    meta_loss: MetaLoss
    sigma: float
    pairs: int

    def begin(self, group: Group, optimizer: Optimizer, phi: Phi, generator: torch.Generator) -> ParticleGroup:
        """The group with its particles at θ_0."""
        noise = self.first_noise(phi, self.pairs * group.tasks, generator)
        return ParticleGroup.of(group, optimizer, 2 * self.pairs + self.others, noise, self.sigma)

    def first_noise(self, phi: Phi, pairs: int, generator: torch.Generator) -> Noise:
        """What a trajectory of so many pairs begins with: nothing."""
        return {}

    @abstractmethod
    def perturb(self, phi: Phi, group: ParticleGroup, generator: torch.Generator) -> tuple[Noise, Noise]:
        """ε of the next window, and the direction that the differences of its meta-losses weigh."""

    def draw(self, phi: Phi, pairs: int, sigma: float, generator: torch.Generator) -> Noise:
        """ε ~ N(0, σ²) for so many pairs."""
        return {
            name: sigma * torch.randn(pairs, *weight.shape, generator=generator, device=weight.device)
            for name, weight in phi.items()
        }

    @torch.no_grad()
    def estimate(
        self, optimizer: Optimizer, phi: Phi, group: Group, window: Window, generator: torch.Generator
    ) -> MetaGradient:
        """The meta-gradient of the group's next window; the group moves on in place."""
        assert isinstance(group, ParticleGroup)
        noise, direction = self.perturb(phi, group, generator)
        losses = unroll(
            group,
            optimizer,
            {name: self._perturbed(weight, noise[name], group.tasks) for name, weight in phi.items()},
            first_step=window.first_step,
            steps=window.steps,
            horizon=window.horizon,
            generator=generator,
            second_order=False,
        )
        finite = losses.abs() < LARGEST
        measured = measure(self.meta_loss, group, window, losses)
        # From here on each is [particles, tasks].
        meta_losses, objective, final, finite = (
            found.view(-1, group.tasks) for found in (*measured, finite.all(dim=0))
        )
        slopes = (objective[: self.pairs] - objective[self.pairs : 2 * self.pairs]) / (2 * group.sigma**2)
        reported = slice(-self.others, None)  # the unperturbed φ, or all
        return MetaGradient(
            _weighted(direction, slopes.flatten()),
            meta_losses[reported].mean(),
            final[reported].mean(),
            (~finite.all(dim=0)).sum(),
            (~finite.any(dim=0)).sum(),
        )

    def _perturbed(self, weight: Tensor, noise: Tensor, tasks: int) -> Tensor:
        """One weight of φ for each particle of each task, `[particles·tasks, …]`."""
        unperturbed = weight.expand(self.others * tasks, *weight.shape)
        return torch.cat((weight + noise, weight - noise, unperturbed))


def _weighted(direction: Mapping[str, Tensor], slopes: Tensor) -> dict[str, Tensor]:
    """The mean over pairs of slope · direction."""
    return {name: torch.tensordot(slopes, noise, dims=1) / len(slopes) for name, noise in direction.items()}
