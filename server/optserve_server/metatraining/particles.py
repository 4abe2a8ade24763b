"""Particles: the inner loops of the same tasks under different φ, side by side."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining.training_checkpoints import State
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Phi, Updates, initial_state
from optserve_server.optimizers.fused_hierarchy import HierarchicalStepper, fits_hierarchy
from optserve_server.optimizers.steppers import ModuleStepper, Step, Stepper
from optserve_server.tasks.base import Batch, Theta, vectorized

_CACHE_BYTES = 2**20  # with everything at once a step of many particles takes half as long again


@dataclass
class ParticleGroup(Group):
    """A group whose tasks each have several inner loops, the *particles*, each with a φ of its own.

    `theta` is `[particles·tasks, n]` and `state` `[particles·tasks, …]`, particle by particle; the tasks, their scales
    and the minibatches are `[tasks, …]`, the same for every particle. `noise` is what an estimator remembers of its
    perturbations of φ, by the names of φ, `[pairs·tasks, …]`; some remember none. `sigma` is their deviation.
    """

    particles: int = field(kw_only=True)
    noise: dict[str, Tensor] = field(kw_only=True)
    sigma: float = field(kw_only=True)

    @classmethod
    def of(cls, group: Group, optimizer: Optimizer, particles: int, noise: dict[str, Tensor], sigma: float) -> Self:
        """A group at θ_0 with its tasks given `particles` particles each."""
        theta = group.theta.repeat(particles, 1)
        state = initial_state(optimizer, tuple(group.family.shapes.values()), theta.shape[:1], like=theta)
        return cls(
            group.share,
            group.family,
            group.task_data,
            theta,
            state,
            group.scales,
            particles=particles,
            noise=noise,
            sigma=sigma,
            parameters=group.parameters,
            told=group.told,
        )

    @property
    def tasks(self) -> int:
        """How many tasks step together."""
        return self.theta.shape[0] // self.particles

    def losses(self, theta: Theta, batch: Batch) -> Tensor:
        """f(θ) of each particle of each task, `[particles·tasks]`."""
        each = theta.view(self.particles, self.tasks, -1)
        each = each if self.scales is None else self.scales * each
        losses: Tensor = torch.vmap(vectorized(self.family), in_dims=(0, None, None))(each, self.task_data, batch)
        return losses.flatten()

    def stepper(self, optimizer: Optimizer, phi: Phi, steps: int, *, second_order: bool) -> Stepper:
        """What steps the optimizer through the next window; `phi` is `[particles·tasks, …]`."""
        if fits_hierarchy(optimizer, phi, self.state):
            return HierarchicalStepper(phi, self.state)
        return ModuleStepper(step_each(optimizer.step), phi, self.state)

    def gather(self, particle: int) -> None:
        """Let all particles go on from where this one is."""

        def repeated(tensor: Tensor) -> Tensor:
            each = tensor.view(self.particles, self.tasks, *tensor.shape[1:])
            return each[particle].repeat(self.particles, *[1] * (tensor.dim() - 1))

        self.theta = repeated(self.theta)
        arrays = {name: repeated(array) for name, array in self.state.arrays.items()}
        self.state = HiddenState(repeated(self.state.coordinates), arrays)
        if self.teacher is not None:
            self.teacher.moments = repeated(self.teacher.moments)

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return {**super().to_state(), "particles": self.particles, "noise": self.noise, "sigma": self.sigma}


@lru_cache(maxsize=64)
def step_each(step: Step) -> Step:
    """`step` of many inner loops, each with a φ of its own: the first dimension of everything but the clock."""

    def each(phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        def one(
            phi: Phi,
            state: HiddenState,
            gradients: Tensor,
            parameters: Tensor | None,
            loss: Tensor | None,
            horizon: Tensor | None,
        ) -> tuple[Updates, HiddenState]:
            seen = Observations(gradients, observations.clock, parameters, loss, horizon, observations.shapes)
            return step(phi, seen, state)

        stepped: tuple[Updates, HiddenState] = torch.vmap(one, chunk_size=_together(state.coordinates))(
            dict(phi),
            state,
            observations.gradients,
            observations.parameters,
            observations.loss,
            observations.horizon,
        )
        return stepped

    return each


def _together(coordinates: Tensor) -> int | None:
    """How many inner loops are stepped at once: on a CPU as many as its cache holds the hidden states of."""
    if coordinates.device.type != "cpu":
        return None
    return max(1, _CACHE_BYTES // (coordinates[0].numel() * coordinates.element_size()))
