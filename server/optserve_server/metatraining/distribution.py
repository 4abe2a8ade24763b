"""What an outer step trains on: f, θ_0 and T, drawn from the recipe's distribution."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.tables import Augmentation, HorizonRange, Unroll
from optserve_server.metatraining.told import draw_told
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

    def of_place(self, seed: int, place: int) -> "Generators":
        """Others on the same devices, for one place of several trajectories."""
        mixed = int.from_bytes(hashlib.blake2b(f"{seed}/{place}".encode(), digest_size=7).digest(), "little")
        return Generators.seeded(mixed, self.device.device)

    def to_state(self) -> State:
        """Where both sequences stand."""
        return [generator.get_state() for generator in self]

    def restore(self, state: State) -> None:
        """Go to where both sequences stood."""
        for generator, position in zip(self, state, strict=True):
            generator.set_state(position.cpu())


@dataclass
class Trajectory:
    """The groups of one draw of tasks, which may come from several families, all at step `step` of `horizon`.

    It is over at step `last`: T, but for the first trajectories of several, which are cut so that they end in turn.
    """

    groups: list[Group]
    horizon: int
    last: int
    step: int = 0

    @property
    def finished(self) -> bool:
        """Whether it is over."""
        return self.step >= self.last

    def end_in_turn(self, place: int, unroll: Unroll) -> None:
        """Cut the first trajectory in this place of several, so that from the second on they are at different steps."""
        share = (place + 1) / unroll.trajectories
        windows = math.ceil(share * self.horizon / unroll.window)
        self.last = min(self.horizon, windows * unroll.window)

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        groups = [group.to_state() for group in self.groups]
        return {"horizon": self.horizon, "last": self.last, "step": self.step, "groups": groups}

    @classmethod
    def from_state(cls, recipe: Recipe, state: State) -> Self:
        """The trajectory of this recipe whose `to_state` this is."""
        kind = Group if recipe.gradient.estimator == "backpropagation" else ParticleGroup
        groups = [kind.from_state(recipe.tasks, group) for group in state["groups"]]
        return cls(groups, state["horizon"], state["last"], state["step"])


def draw_trajectory(
    recipe: Recipe, optimizer: Optimizer, generators: Generators, longest: int | None = None
) -> Trajectory:
    """Draw f ~ the recipe's distribution, θ_0 and T for one trajectory; T at most `longest`, where that is given.

    Its tasks are of all families where it is alone, and of one where it is one of several: the mixture is then that of
    the trajectories.
    """
    weights = torch.tensor([share.weight for share in recipe.tasks])
    tasks = recipe.meta_optimizer.tasks_per_outer_step // recipe.unroll.advance
    draws, each = (tasks, 1) if recipe.unroll.trajectories == 1 else (1, tasks)
    drawn = torch.multinomial(weights, draws, replacement=True, generator=generators.host)
    counts = (each * torch.bincount(drawn, minlength=len(weights))).tolist()
    shares = [
        share.drawn(generators.host) if count else share for share, count in zip(recipe.tasks, counts, strict=True)
    ]
    groups = draw_groups(shares, counts, optimizer, generators.device, "train")

    def draw_horizon() -> int:
        return _draw_horizon(recipe.unroll.steps, longest or recipe.unroll.longest, generators.host)

    # Pauses begin anywhere before T. Without them T is drawn last, as it was before there were any: a recipe that has
    # made a φ makes it again.
    horizon = draw_horizon() if recipe.augmentation.pauses else None
    for group in groups:
        reparametrise(group, recipe.augmentation, generators.device)
        group.told = draw_told(recipe.augmentation, group.tasks, horizon or 0, generators.host, generators.device)
    horizon = horizon or draw_horizon()
    return Trajectory(groups, horizon, horizon)


def reparametrise(group: Group, augmentation: Augmentation, generator: torch.Generator) -> None:
    """Turn some tasks into f(c ⊙ z), at the z_0 that is their θ_0."""
    like = group.theta
    for spread, exponents in (
        (augmentation.coordinate_scaling, torch.empty_like(like)),
        (augmentation.task_scaling, like.new_empty(len(like), 1)),
    ):
        if spread:
            exponents.uniform_(-spread, spread, generator=generator)
            uniform = torch.rand(group.tasks, 1, generator=generator, device=generator.device)
            scales = torch.where(uniform < augmentation.probability, exponents.exp(), 1.0)
            group.scales = scales if group.scales is None else scales * group.scales
    if group.scales is not None:
        group.scales = group.scales.expand_as(like).contiguous()
        group.theta = like / group.scales


def _draw_horizon(steps: int | HorizonRange, longest: int, generator: torch.Generator) -> int:
    """T with density ∝ T^−power up to `longest`, by inverting its distribution function."""
    if isinstance(steps, int):
        return longest
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    if steps.power == 1:
        return round(steps.low * (longest / steps.low) ** share)
    exponent = 1 - steps.power
    low, high = float(steps.low) ** exponent, float(longest) ** exponent
    drawn: float = (low + share * (high - low)) ** (1 / exponent)
    return round(drawn)
