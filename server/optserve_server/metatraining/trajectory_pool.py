"""The trajectories under way, and an outer step's meta-gradient from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optserve_server.metatraining import estimators
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.recipes import Recipe
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


class TrajectoryPool:
    """As many trajectories as the recipe has under way, at different steps; each outer step advances some, in turn."""

    def __init__(self, recipe: Recipe, optimizer: Optimizer, generators: Generators) -> None:
        self._recipe = recipe
        self._optimizer = optimizer
        self._generators = generators
        self._estimator = estimators.build(recipe)
        self._trajectories: list[Trajectory | None] = [None] * recipe.unroll.trajectories

    def advance(self, outer_step: int, phi: Phi, longest: int) -> Advance:
        """Take the next trajectories one window further; new ones have a T of at most `longest`."""
        unroll = self._recipe.unroll
        first = (outer_step - 1) * unroll.advance
        places = [place % unroll.trajectories for place in range(first, first + unroll.advance)]
        advanced = [self._at(place, outer_step, phi, longest) for place in places]
        estimates = [found for trajectory in advanced for found in self._window(trajectory, outer_step, phi)]
        return Advance(
            _mean(estimates, unit_norm=self._recipe.gradient.unit_norm),
            sum(tasks for tasks, _ in estimates),
            ", ".join(dict.fromkeys(group.family.name for trajectory in advanced for group in trajectory.groups)),
            advanced[-1].step,
            advanced[-1].horizon,
        )

    def clear(self) -> None:
        """Give all trajectories up."""
        self._trajectories = [None] * len(self._trajectories)

    def to_state(self) -> State:
        """All trajectories, for a training checkpoint."""
        return [None if found is None else found.to_state() for found in self._trajectories]

    def restore(self, state: State) -> None:
        """Go on with what they were."""
        self._trajectories = [None if found is None else Trajectory.from_state(self._recipe, found) for found in state]

    def _at(self, place: int, outer_step: int, phi: Phi, longest: int) -> Trajectory:
        """The trajectory in this place of the pool; a new one if it is over."""
        found = self._trajectories[place]
        if found is not None and not found.finished:
            return found
        begun = self._begin(outer_step, phi, longest)
        if found is None:
            begun.end_in_turn(place, self._recipe.unroll)
        self._trajectories[place] = begun
        return begun

    def _begin(self, outer_step: int, phi: Phi, longest: int) -> Trajectory:
        trajectory = draw_trajectory(self._recipe, self._optimizer, self._generators, longest)
        estimator = estimators.build(self._recipe, outer_step)
        trajectory.groups = [
            estimator.begin(group, self._optimizer, phi, self._generators.device) for group in trajectory.groups
        ]
        imitation = self._recipe.imitation
        if imitation is not None and imitation.weight_at(outer_step) > 0:
            for group in trajectory.groups:
                group.teacher = Teacher.of(group.state.coordinates, imitation.learning_rate)
        return trajectory

    def _window(self, trajectory: Trajectory, outer_step: int, phi: Phi) -> list[tuple[int, MetaGradient]]:
        """The estimates of the trajectory's groups over its next window, each with its number of tasks."""
        steps = min(self._recipe.unroll.window, trajectory.last - trajectory.step)
        imitation = self._recipe.imitation
        weight = 0.0 if imitation is None else imitation.weight_at(outer_step)
        window = Window(trajectory.step, steps, trajectory.horizon, weight)
        trajectory.step += steps
        return [
            (group.tasks, self._estimator.estimate(self._optimizer, phi, group, window, self._generators.device))
            for group in trajectory.groups
        ]


def _mean(estimates: Sequence[tuple[int, MetaGradient]], *, unit_norm: bool) -> MetaGradient:
    """The mean of estimates, weighted by their numbers of tasks; of tasks that are not finite, the sum."""
    tasks = sum(count for count, _ in estimates)
    shares = [count / tasks for count, _ in estimates]
    found = [estimate for _, estimate in estimates]
    gradients = [_of_norm_one(estimate.gradients) if unit_norm else estimate.gradients for estimate in found]
    if len(found) == 1:
        return replace(found[0], gradients=gradients[0])

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(dim=0)

    return MetaGradient(
        {name: mean([gradient[name] for gradient in gradients]) for name in gradients[0]},
        mean([estimate.meta_loss for estimate in found]),
        mean([estimate.loss for estimate in found]),
        torch.stack([estimate.non_finite for estimate in found]).sum(),
        torch.stack([estimate.lost for estimate in found]).sum(),
    )


def _of_norm_one(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same direction with norm 1; zero stays zero."""
    norm = torch.nn.utils.get_total_norm(gradients.values())
    return {name: gradient / norm.where(norm > 0, 1.0) for name, gradient in gradients.items()}
