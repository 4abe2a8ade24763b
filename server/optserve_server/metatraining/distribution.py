"""What an outer step trains on: f, θ_0 and T, drawn from the recipe's distribution."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.tables import Augmentation, HorizonRange
from optserve_server.metatraining.training_checkpoints import State
from optserve_server.metatraining.trajectories import Group, draw_groups
from optserve_server.optimizers import Optimizer


class Generators(NamedTuple):
    """Where randomness comes from: the numbers that the host decides by, and the tensors of the device.

    On a CPU both are one generator, so that a recipe draws there what it always did.
    """

    host: torch.Generator
    device: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> Self:
        """Both at the start of the recipe's sequence."""
        host = torch.Generator().manual_seed(seed)
        return cls(host, host if device.type == "cpu" else torch.Generator(device).manual_seed(seed))

    def to_state(self) -> State:
        """Where both sequences stand."""
        return [generator.get_state() for generator in self]

    def restore(self, state: State) -> None:
        """Go to where both sequences stood."""
        for generator, position in zip(self, state, strict=True):
            generator.set_state(position.cpu())


@dataclass
class Trajectory:
    """The groups of one draw of tasks, which may come from several families, all at step `step` of `horizon`."""

    groups: list[Group]
    horizon: int
    step: int = 0

    @property
    def finished(self) -> bool:
        """Whether t = T."""
        return self.step >= self.horizon

    @property
    def tasks(self) -> int:
        """How many tasks there are in all groups."""
        return sum(group.tasks for group in self.groups)

    @property
    def families(self) -> str:
        """The names of the families its tasks are of."""
        return ", ".join(dict.fromkeys(group.family.name for group in self.groups))

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return {"horizon": self.horizon, "step": self.step, "groups": [group.to_state() for group in self.groups]}

    @classmethod
    def from_state(cls, recipe: Recipe, state: State) -> Self:
        """The trajectory of this recipe whose `to_state` this is."""
        kind = Group if recipe.gradient.estimator == "backpropagation" else ParticleGroup
        groups = [kind.from_state(recipe.tasks, group) for group in state["groups"]]
        return cls(groups, state["horizon"], state["step"])


def draw_trajectory(recipe: Recipe, optimizer: Optimizer, generators: Generators) -> Trajectory:
    """Draw f ~ the recipe's distribution, θ_0 and T for one trajectory."""
    weights = torch.tensor([share.weight for share in recipe.tasks])
    tasks = recipe.meta_optimizer.tasks_per_outer_step
    drawn = torch.multinomial(weights, tasks, replacement=True, generator=generators.host)
    counts = torch.bincount(drawn, minlength=len(weights)).tolist()
    groups = draw_groups(recipe.tasks, counts, optimizer, generators.device, "train")
    for group in groups:
        _reparametrise(group, recipe.augmentation, generators.device)
    return Trajectory(groups, _draw_horizon(recipe.unroll.steps, generators.host))


def _reparametrise(group: Group, augmentation: Augmentation, generator: torch.Generator) -> None:
    if not augmentation.coordinate_scaling:
        return
    spread = augmentation.coordinate_scaling
    exponents = torch.empty_like(group.theta).uniform_(-spread, spread, generator=generator)
    uniform = torch.rand(group.tasks, 1, generator=generator, device=generator.device)
    group.scales = torch.where(uniform < augmentation.probability, exponents.exp(), 1.0)
    group.theta = group.theta / group.scales


def _draw_horizon(steps: int | HorizonRange, generator: torch.Generator) -> int:
    """T with density ∝ T^−power, by inverting its distribution function."""
    if isinstance(steps, int):
        return steps
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    if steps.power == 1:
        return round(steps.low * (steps.high / steps.low) ** share)
    exponent = 1 - steps.power
    low, high = float(steps.low) ** exponent, float(steps.high) ** exponent
    drawn: float = (low + share * (high - low)) ** (1 / exponent)
    return round(drawn)
