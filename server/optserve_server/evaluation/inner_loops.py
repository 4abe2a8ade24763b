"""The inner loops of one optimizer on one task: several seeds, and several learning rates, at once."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.evaluation.plans import Plan
from optserve_server.evaluation.summaries import Losses
from optserve_server.metatraining.tables import TaskShare
from optserve_server.metatraining.trajectories import Group, draw_groups, unroll
from optserve_server.optimizers import Optimizer, Phi, Updates, initial_state
from optserve_server.tasks.base import Batch, Theta, coordinates, vectorized

CPU = torch.device("cpu")

WINDOW = 50
"""Inner steps between two yields."""

MAX_POINTS = 200
"""Of a curve, beside θ_0."""

_FRESH_BATCHES = 16  # whose mean is the initial and the final loss: a single minibatch is too noisy to rank by
_LARGEST_THETA = 8_000_000  # coordinates that are stepped together; more learning rates than that take turns
_SEED = 2_000_003  # apart from the seeds of meta-training and of validation, for tasks of generated data


@dataclass
class RepeatedGroup(Group):
    """The inner loops of the same seeds at each of several learning rates.

    `theta` is `[rates·seeds, n]`, rate by rate; the tasks and minibatches are those of the seeds, `[seeds, …]`, the
    same at every rate. `rates`, `[rates·seeds, 1]`, multiply the updates.
    """

    seeds: int = field(kw_only=True)
    rates: Tensor = field(kw_only=True)

    def draw_batch(self, generator: torch.Generator) -> Batch:
        """What one step sees of the data."""
        return self.family.batch(generator, self.task_data, self.seeds)

    def losses(self, theta: Theta, batch: Batch) -> Tensor:
        """f(θ) at each rate for each seed, `[rates·seeds]`."""
        every_rate = torch.func.vmap(vectorized(self.family), in_dims=(0, None, None))
        losses: Tensor = every_rate(theta.view(-1, self.seeds, theta.shape[1]), self.task_data, batch)
        return losses.flatten()

    def move(self, updates: Updates) -> None:
        """θ_{t+1} = θ_t + rate · g_t."""
        self.theta = self.theta + self.rates * updates.view_as(self.theta)


def run(
    task: TaskShare,
    optimizer: Optimizer,
    phi: Phi,
    plan: Plan,
    rates: Sequence[float] = (1.0,),
    device: torch.device = CPU,
) -> Generator[int, None, Losses]:
    """Train the plan's seeds with updates multiplied by each of `rates`; yields the steps made so far.

    Several rates need a coordinatewise optimizer. Returns f(θ_t) at the steps of `points`, `[rates, seeds, points]`: on
    the minibatch of step t, but the first and the last, which are means over several fresh ones.
    """
    together = max(1, _LARGEST_THETA // (plan.seeds * coordinates(task.build())))
    parts = []
    for first in range(0, len(rates), together):
        part = yield from _run_together(task, optimizer, phi, plan, rates[first : first + together], device)
        parts.append(part)
    return np.concatenate(parts)


def points(steps: int) -> NDArray[np.int64]:
    """The steps t of a curve's points: 0 … `steps`, thinned evenly."""
    return np.unique(np.linspace(0, steps, min(steps, MAX_POINTS) + 1).round().astype(np.int64))


def _run_together(
    task: TaskShare, optimizer: Optimizer, phi: Phi, plan: Plan, rates: Sequence[float], device: torch.device
) -> Generator[int, None, Losses]:
    generator = torch.Generator(device).manual_seed(_SEED + plan.seed)
    group = _draw(task, optimizer, plan.seeds, rates, generator)
    losses = [_mean_losses(group, generator).unsqueeze(0)]
    for first_step in range(0, plan.steps, WINDOW):
        steps = min(WINDOW, plan.steps - first_step)
        losses.append(_window(group, optimizer, phi, first_step, steps, plan.steps, generator))
        yield first_step + steps
    losses[-1][-1] = _mean_losses(group, generator)
    chosen = torch.cat(losses)[torch.from_numpy(points(plan.steps)).to(device)]
    return chosen.T.reshape(len(rates), plan.seeds, -1).double().cpu().numpy()


def _draw(
    task: TaskShare, optimizer: Optimizer, seeds: int, rates: Sequence[float], generator: torch.Generator
) -> RepeatedGroup:
    (group,) = draw_groups([task], [seeds], optimizer, generator, "held-out")
    theta, state = group.theta.repeat(len(rates), 1), group.state
    if len(rates) > 1:
        state = initial_state(optimizer, ((theta.numel(),),), like=theta)
    repeated = torch.tensor(rates, device=theta.device).repeat_interleave(seeds).unsqueeze(1)
    return RepeatedGroup(group.share, group.family, group.task_data, theta, state, seeds=seeds, rates=repeated)


@torch.no_grad()
def _window(
    group: RepeatedGroup,
    optimizer: Optimizer,
    phi: Phi,
    first_step: int,
    steps: int,
    horizon: int,
    generator: torch.Generator,
) -> Tensor:
    return unroll(
        group,
        optimizer,
        phi,
        first_step=first_step,
        steps=steps,
        horizon=horizon,
        generator=generator,
        second_order=False,
    )


@torch.no_grad()
def _mean_losses(group: RepeatedGroup, generator: torch.Generator) -> Tensor:
    """f(θ) averaged over fresh minibatches, `[rates·seeds]`; where f is deterministic, one evaluation is all."""
    batch = group.draw_batch(generator)
    losses = group.losses(group.theta, batch)
    if not batch:
        return losses
    others = [group.losses(group.theta, group.draw_batch(generator)) for _ in range(_FRESH_BATCHES - 1)]
    return torch.stack([losses, *others]).mean(dim=0)
