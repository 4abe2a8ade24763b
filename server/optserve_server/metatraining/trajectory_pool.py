"""The trajectories under way, and an outer step's windows of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from optserve_server.metatraining import estimators
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.meta_losses import weights
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.tables import Growth
from optserve_server.metatraining.training_checkpoints import State
from optserve_server.optimizers import Optimizer, Phi


@dataclass(frozen=True, slots=True)
class Advance:
    """What an outer step has found out: the mean estimate over so many `tasks`, of these `families`.

    `step` and `horizon` are of the trajectory that was advanced last.
    """

    estimate: MetaGradient
    tasks: int
    families: str
    step: int
    horizon: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one group over one window of the trajectory in `place`, which it leaves at `step` of `horizon`.

    `weight` is the mean of the meta-loss's w_t over the window's steps.
    """

    place: int
    family: str
    tasks: int
    step: int
    horizon: int
    weight: float
    found: MetaGradient


class Pool(Protocol):
    """The trajectories under way, wherever they are."""

    def windows(self, outer_step: int, phi: Phi, longest: int) -> Sequence[Estimate]:
        """Take the outer step's trajectories one window further; new ones have a T of at most `longest`."""
        ...

    def clear(self) -> None:
        """Give all trajectories up."""
        ...

    def to_state(self) -> list[State]:
        """What is in each place, for a training checkpoint."""
        ...

    def restore(self, state: Sequence[State]) -> None:
        """Go on with what was in each place."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class TrajectoryPool:
    """As many trajectories as the recipe has under way, at different steps; each outer step advances some, in turn.

    A single trajectory draws from the recipe's own generators. Of several each place has generators of its own, so that
    it comes to the same wherever it is: a pool may have a `share` of all places only, every `shares`-th.
    """

    def __init__(
        self, recipe: Recipe, optimizer: Optimizer, generators: Generators, share: int = 0, shares: int = 1
    ) -> None:
        self._recipe = recipe
        self._optimizer = optimizer
        several = recipe.unroll.trajectories > 1
        self._generators = {
            place: generators.of_place(recipe.seed, place) if several else generators
            for place in range(share, recipe.unroll.trajectories, shares)
        }
        self._trajectories: dict[int, Trajectory | None] = dict.fromkeys(self._generators)

    def windows(self, outer_step: int, phi: Phi, longest: int) -> list[Estimate]:
        """Take the outer step's trajectories one window further, as far as they are of this share."""
        unroll = self._recipe.unroll
        first = (outer_step - 1) * unroll.advance
        places = [place % unroll.trajectories for place in range(first, first + unroll.advance)]
        return [
            estimate
            for place in places
            if place in self._trajectories
            for estimate in self._window(place, outer_step, phi, longest)
        ]

    def clear(self) -> None:
        """Give all trajectories up."""
        self._trajectories = dict.fromkeys(self._trajectories)

    def to_state(self) -> list[State]:
        """What is in each place of this share."""
        return [
            {
                "trajectory": None if found is None else found.to_state(),
                "generators": self._generators[place].to_state(),
            }
            for place, found in self._trajectories.items()
        ]

    def restore(self, state: Sequence[State]) -> None:
        """Go on with what was in each place of this share."""
        for place, of_place in zip(self._trajectories, state, strict=True):
            found = of_place["trajectory"]
            self._trajectories[place] = None if found is None else Trajectory.from_state(self._recipe, found)
            self._generators[place].restore(of_place["generators"])

    def close(self) -> None:
        """Nothing: it holds nothing."""

    def _at(self, place: int, outer_step: int, phi: Phi, longest: int) -> Trajectory:
        """The trajectory in this place of the pool; a new one if it is over."""
        found = self._trajectories[place]
        if found is not None and not found.finished:
            return found
        begun = self._begin(place, outer_step, phi, longest)
        if found is None:
            begun.end_in_turn(place, self._recipe.unroll)
        self._trajectories[place] = begun
        return begun

    def _begin(self, place: int, outer_step: int, phi: Phi, longest: int) -> Trajectory:
        generators = self._generators[place]
        trajectory = draw_trajectory(self._recipe, self._optimizer, generators, longest)
        estimator = estimators.build(self._recipe, outer_step)
        trajectory.groups = [
            estimator.begin(group, self._optimizer, phi, generators.device) for group in trajectory.groups
        ]
        imitation = self._recipe.imitation
        if imitation is not None and imitation.weight_at(outer_step) > 0:
            for group in trajectory.groups:
                group.teacher = Teacher.of(group.state.coordinates, imitation.learning_rate)
        return trajectory

    def _window(self, place: int, outer_step: int, phi: Phi, longest: int) -> list[Estimate]:
        """The estimates of the groups of the trajectory in this place over its next window."""
        trajectory = self._at(place, outer_step, phi, longest)
        steps = min(self._recipe.unroll.window, trajectory.last - trajectory.step)
        imitation = self._recipe.imitation
        weight = 0.0 if imitation is None else imitation.weight_at(outer_step)
        window = Window(trajectory.step, steps, trajectory.horizon, weight)
        trajectory.step += steps
        estimator, generator = estimators.build(self._recipe, outer_step), self._generators[place].device
        mean_weight = _mean_weight(self._recipe.meta_loss.weights, window)
        return [
            Estimate(
                *(place, group.family.name, group.tasks, trajectory.step, trajectory.horizon, mean_weight),
                estimator.estimate(self._optimizer, phi, group, window, generator),
            )
            for group in trajectory.groups
        ]


def combined(estimates: Sequence[Estimate], *, unit_norm: bool) -> Advance:
    """The mean of an outer step's estimates, in the order of the trajectories, weighted by their numbers of tasks.

    With `unit_norm` each gradient is scaled to norm 1 first, then by its window's weight: what the meta-loss says of
    the end of a trajectory and of its beginning would be lost else.
    """
    tasks = sum(one.tasks for one in estimates)
    last = estimates[-1]
    found = [_of_norm(one.weight, one.found) if unit_norm else one.found for one in estimates]
    return Advance(
        _mean([one.tasks / tasks for one in estimates], found),
        tasks,
        ", ".join(dict.fromkeys(one.family for one in estimates)),
        last.step,
        last.horizon,
    )


def _mean_weight(settings: tuple[float, ...] | Growth | None, window: Window) -> float:
    """The mean of w_t over a window's steps; 1 where there are no weights."""
    if settings is None:
        return 1.0
    of_steps = weights(settings, window.first_step, window.steps, window.horizon, torch.empty(0, dtype=torch.float64))
    return of_steps.mean().item()


def _mean(shares: Sequence[float], found: Sequence[MetaGradient]) -> MetaGradient:
    """The mean by these shares; of tasks that are not finite, the sum."""
    if len(found) == 1:
        return found[0]

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(dim=0)

    return MetaGradient(
        {name: mean([estimate.gradients[name] for estimate in found]) for name in found[0].gradients},
        mean([estimate.meta_loss for estimate in found]),
        mean([estimate.loss for estimate in found]),
        torch.stack([estimate.non_finite for estimate in found]).sum(),
        torch.stack([estimate.lost for estimate in found]).sum(),
    )


def _of_norm(length: float, estimate: MetaGradient) -> MetaGradient:
    """The same direction with this norm; zero stays zero."""
    norm = torch.nn.utils.get_total_norm(estimate.gradients.values())
    scale = length / norm.where(norm > 0, 1.0)
    return replace(estimate, gradients={name: scale * gradient for name, gradient in estimate.gradients.items()})
