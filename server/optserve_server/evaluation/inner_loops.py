"""The inner loops of one rule on one task: several seeds, several learning rates, and several T, at once."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.evaluation.distortions import UNDISTORTED, DistortedStepper, Distortion
from optserve_server.evaluation.plans import Plan, PlannedTask
from optserve_server.evaluation.rules import Rule
from optserve_server.evaluation.summaries import Losses
from optserve_server.metatraining.trajectories import Group, draw_groups, unroll
from optserve_server.optimizers import Optimizer, Phi, Updates, initial_state
from optserve_server.optimizers.steppers import Stepper
from optserve_server.tasks.base import Batch, Theta, coordinates, has_other_rows, vectorized

CPU = torch.device("cpu")

WINDOW = 50
"""Inner steps between two yields."""

MAX_POINTS = 200
"""Of a curve, beside θ_0."""

_FRESH_BATCHES, _FRESH_ROWS = 16, 512
"""The initial and the final loss are means over so many minibatches and rows: a single one is too noisy to rank by."""
_LARGEST_THETA = 8_000_000  # coordinates that are stepped together; more learning rates than that take turns
_SEED = 2_000_003  # apart from the seeds of meta-training and of validation, for tasks of generated data
_SEED_OF_OTHER_ROWS = 3_000_017


@dataclass
class RepeatedGroup(Group):
    """The inner loops of the same seeds at each of several learning rates.

    `theta` is `[rates·seeds, n]`, rate by rate; the tasks and minibatches are those of the seeds, `[seeds, …]`, the
    same at every rate. `rates`, `[rates·seeds, 1]`, multiply the updates, and so does the rule's factor at `step`.
    """

    rule: Rule = field(kw_only=True)
    horizon: int = field(kw_only=True)
    seeds: int = field(kw_only=True)
    rates: Tensor = field(kw_only=True)
    distortion: Distortion = field(kw_only=True)
    step: int = 0

    def draw_batch(self, generator: torch.Generator) -> Batch:
        """What one step sees of the data."""
        return self.family.batch(generator, self.task_data, self.seeds)

    def losses(self, theta: Theta, batch: Batch) -> Tensor:
        """f(θ) at each rate for each seed, `[rates·seeds]`."""
        every_rate = torch.func.vmap(vectorized(self.family), in_dims=(0, None, None))
        losses: Tensor = every_rate(theta.view(-1, self.seeds, theta.shape[1]), self.task_data, batch)
        return losses.flatten()

    def stepper(self, optimizer: Optimizer, phi: Phi, steps: int, *, second_order: bool) -> Stepper:
        """What steps the optimizer through the next window, and shows it what the distortion leaves of the truth."""
        inner = super().stepper(optimizer, phi, steps, second_order=second_order)
        return inner if self.distortion == UNDISTORTED else DistortedStepper(inner, self.distortion, self.step)

    def move(self, updates: Updates) -> None:
        """θ_{t+1} = θ_t + rate · factor · g_t."""
        rates = self.rates * self.rule.factor(self.step, self.horizon)
        self.theta = self.theta + rates * updates.view_as(self.theta)
        self.step += 1

    @property
    def learned(self) -> Theta:
        """The θ that counts, `[rates·seeds, n]`."""
        return self.rule.learned(self.theta, self.state.coordinates, self.rates)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of inner loops of T steps.

    `losses` are f(θ_t) at the steps of `points(T)`, `[rates, seeds, points]`: on the minibatch of step t, or the mean
    over the steps since the point before. The first and the last are means over several fresh minibatches.
    `held_out` are those of θ_T on rows that its loop has not seen, `[rates, seeds]`, where the family has any.
    """

    losses: Losses
    held_out: Losses | None


def run(
    task: PlannedTask,
    rule: Rule,
    plan: Plan,
    horizons: Sequence[int],
    rates: Sequence[float] = (1.0,),
    device: torch.device = CPU,
) -> Generator[int, None, list[Measured]]:
    """Train the plan's seeds with updates multiplied by each of `rates`; yields the steps made so far.

    Several rates need a coordinatewise optimizer. Several of the plan's T, the shortest first, need a rule that does
    not know T: they are then points of one inner loop. What is measured at each T comes in their order.
    """
    together = _together(task, plan)
    parts = []
    for first in range(0, len(rates), together):
        part = yield from _run_together(task, rule, plan, horizons, rates[first : first + together], device)
        parts.append(part)
    return [_joined([part[place] for part in parts]) for place in range(len(horizons))]


def rehearse(task: PlannedTask, rule: Rule, plan: Plan, rates: Sequence[float]) -> None:
    """The beginning of such inner loops, up to their second step, for a measurement of what they need."""
    generator = torch.Generator()
    rates = rates[: _together(task, plan)]
    group = _draw(task, rule, plan.seeds, plan.horizons[-1], rates, generator)
    _window(group, 0, 2, generator)


def _together(task: PlannedTask, plan: Plan) -> int:
    """How many rates are run at once."""
    return max(1, _LARGEST_THETA // (plan.seeds * coordinates(task.build())))


def points(steps: int) -> NDArray[np.int64]:
    """The steps t of a curve's points: 0 … `steps`, thinned evenly."""
    return np.unique(np.linspace(0, steps, min(steps, MAX_POINTS) + 1).round().astype(np.int64))


def _joined(parts: Sequence[Measured]) -> Measured:
    held_out = [part.held_out for part in parts if part.held_out is not None]
    losses = np.concatenate([part.losses for part in parts])
    return Measured(losses, np.concatenate(held_out) if held_out else None)


def _windows(plan: Plan, steps: int) -> Iterator[tuple[int, int]]:
    """First and last step of each window. They are the same for every rule, for a window draws a minibatch more."""
    edges = sorted({0, *range(WINDOW, steps, WINDOW), *(one for one in plan.horizons if one <= steps)})
    yield from pairwise(edges)


def _run_together(
    task: PlannedTask, rule: Rule, plan: Plan, horizons: Sequence[int], rates: Sequence[float], device: torch.device
) -> Generator[int, None, list[Measured]]:
    generator = torch.Generator(device).manual_seed(_SEED + plan.seed)
    group = _draw(task, rule, plan.seeds, horizons[-1], rates, generator)
    other_rows = _with_other_rows(group, plan, device)
    losses = [_mean_losses(group, group.theta, generator).unsqueeze(0)]
    measured = []
    for first, last in _windows(plan, horizons[-1]):
        losses.append(_window(group, first, last - first, generator))
        yield last
        if last in horizons:
            final = _mean_losses(group, group.learned, _copy(generator))
            curve = _curve(torch.cat(losses), final, last).reshape(len(rates), plan.seeds, -1)
            measured.append(Measured(curve, None if other_rows is None else _held_out(group, other_rows, plan)))
    return measured


def _draw(
    task: PlannedTask, rule: Rule, seeds: int, horizon: int, rates: Sequence[float], generator: torch.Generator
) -> RepeatedGroup:
    (group,) = draw_groups([task], [seeds], rule.optimizer, generator, "held-out")
    theta, state = group.theta.repeat(len(rates), 1), group.state
    if len(rates) > 1:
        state = initial_state(rule.optimizer, ((theta.numel(),),), like=theta)
    repeated = torch.tensor(rates, device=theta.device).repeat_interleave(seeds).unsqueeze(1)
    return RepeatedGroup(
        *(group.share, group.family, group.task_data, theta, state),
        rule=rule,
        horizon=horizon,
        seeds=seeds,
        rates=repeated,
        distortion=task.distortion,
    )


def _with_other_rows(group: RepeatedGroup, plan: Plan, device: torch.device) -> RepeatedGroup | None:
    """The same problem on rows that no inner loop sees: those of the half for meta-training."""
    if not has_other_rows(group.family):
        return None
    generator = torch.Generator(device).manual_seed(_SEED_OF_OTHER_ROWS + plan.seed)
    return replace(group, task_data=group.family.sample(generator, group.seeds, "train"))


def _held_out(group: RepeatedGroup, other_rows: RepeatedGroup, plan: Plan) -> Losses:
    generator = torch.Generator(group.theta.device).manual_seed(_SEED_OF_OTHER_ROWS + plan.seed)
    losses = _mean_losses(other_rows, group.learned, generator)
    return losses.reshape(-1, group.seeds).double().cpu().numpy()


def _copy(generator: torch.Generator) -> torch.Generator:
    """One that draws the same, so that a loss in between does not change the minibatches that follow."""
    other = torch.Generator(generator.device)
    other.set_state(generator.get_state())
    return other


def _curve(losses: Tensor, final: Tensor, steps: int) -> Losses:
    """f at the points of T = `steps`, `[rates·seeds, points]`, from the losses of all steps, `[T+1, rates·seeds]`."""
    every_step = torch.cat([losses[:-1], final.unsqueeze(0)]).double().cpu().numpy()
    chosen = points(steps)
    widths = np.diff(chosen, prepend=-1)
    curve: Losses = np.add.reduceat(every_step, chosen - widths + 1, axis=0) / widths[:, np.newaxis]
    curve[-1] = every_step[-1]
    return curve.T


def _window(group: RepeatedGroup, first_step: int, steps: int, generator: torch.Generator) -> Tensor:
    optimizer: Optimizer = group.rule.optimizer
    with torch.no_grad():
        return unroll(
            group,
            optimizer,
            group.rule.phi,
            first_step=first_step,
            steps=steps,
            horizon=group.horizon,
            generator=generator,
            second_order=False,
        )


@torch.no_grad()
def _mean_losses(group: RepeatedGroup, theta: Theta, generator: torch.Generator) -> Tensor:
    """f(θ) averaged over fresh minibatches, `[rates·seeds]`; where f is deterministic, one evaluation is all."""
    batch = group.draw_batch(generator)
    losses = group.losses(theta, batch)
    if not batch:
        return losses
    rows = getattr(group.family, "batch_size", _FRESH_ROWS)
    count = max(_FRESH_BATCHES, -(-_FRESH_ROWS // rows))
    others = [group.losses(theta, group.draw_batch(generator)) for _ in range(count - 1)]
    return torch.stack([losses, *others]).mean(dim=0)
