"""Trajectories: the inner loops θ_{t+1} = θ_t + g_t of many tasks at once, unrolled window by window.

The tasks of one trajectory may come from several families; those of one family are a *group*, whose tasks are stepped
together. The optimizers at hand work on every coordinate alike, so a group hands them all its tasks' coordinates as one
long row, which is twice as fast as a batch of short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optserve_server.metatraining.recipes import Augmentation, LogUniform, Recipe, TaskShare
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Phi, initial_state
from optserve_server.tasks.base import Batch, Split, TaskData, TaskFamily, Theta, vectorized


@dataclass
class Group:
    """The inner loops of some tasks of one family, at step t.

    `theta` is θ_t (of the reparametrised task, where `scales` is given), `[tasks, n]`; `state` is h_t,
    `[features, tasks·n]`; `scales` is c of f(c ⊙ z), `[tasks, n]`.
    """

    family: TaskFamily
    task_data: TaskData
    theta: Theta
    state: HiddenState
    scales: Tensor | None = None

    @property
    def tasks(self) -> int:
        """How many tasks step together."""
        return self.theta.shape[0]

    def draw_batch(self, generator: torch.Generator) -> Batch:
        """What one step sees of the data."""
        return self.family.batch(generator, self.task_data, self.tasks)

    def losses(self, theta: Theta, batch: Batch) -> Tensor:
        """f(θ) of each task, `[tasks]`."""
        scaled = theta if self.scales is None else self.scales * theta
        losses: Tensor = vectorized(self.family)(scaled, self.task_data, batch)
        return losses

    def detach(self) -> None:
        """Cut the graph: the next window starts here."""
        self.theta, self.state = self.theta.detach(), self.state.detach()


@dataclass
class Trajectory:
    """The groups of one meta-batch of tasks, all at step `step` of `horizon`."""

    groups: list[Group]
    horizon: int
    step: int = 0

    @property
    def finished(self) -> bool:
        """Whether t = T."""
        return self.step >= self.horizon


def draw_trajectory(recipe: Recipe, optimizer: Optimizer, generator: torch.Generator) -> Trajectory:
    """Draw f ~ the recipe's distribution, θ_0 and T for one trajectory."""
    weights = torch.tensor([share.weight for share in recipe.tasks])
    drawn = torch.multinomial(weights, recipe.meta_optimizer.tasks_per_outer_step, True, generator=generator)
    counts = torch.bincount(drawn, minlength=len(weights)).tolist()
    groups = draw_groups(recipe.tasks, counts, optimizer, generator, "train")
    for group in groups:
        _reparametrise(group, recipe.augmentation, generator)
    return Trajectory(groups, _draw_horizon(recipe.unroll.steps, generator))


def draw_groups(
    shares: Sequence[TaskShare], counts: Sequence[int], optimizer: Optimizer, generator: torch.Generator, split: Split
) -> list[Group]:
    """One group of `counts[i]` tasks for each share that has any, at θ_0 and h_0."""
    groups = []
    for share, count in zip(shares, counts, strict=True):
        if count:
            family = share.build()
            theta = family.initial(generator, count)
            state = initial_state(optimizer, theta.numel())
            groups.append(Group(family, family.sample(generator, count, split), theta, state))
    return groups


def unroll(
    group: Group,
    optimizer: Optimizer,
    phi: Phi,
    *,
    first_step: int,
    steps: int,
    generator: torch.Generator,
    second_order: bool,
) -> Tensor:
    """Step a group `steps` times from step `first_step` on, and return f(θ) after each step, `[steps, tasks]`.

    f(θ_t) is taken on the minibatch of step t, and the last on a fresh one. The losses carry the graph back to φ; with
    `second_order` through ∂∇_t/∂φ too.
    """
    losses: list[Tensor] = []
    for step in range(first_step, first_step + steps):
        loss, gradients = _loss_and_gradients(group, generator, second_order=second_order)
        losses.append(loss)
        clock = torch.tensor([float(step)], dtype=torch.float64)
        updates, group.state = optimizer.step(phi, Observations(gradients.flatten(), clock), group.state)
        group.theta = group.theta + updates.view_as(group.theta)
    losses.append(group.losses(group.theta, group.draw_batch(generator)))
    return torch.stack(losses[1:])


def _loss_and_gradients(group: Group, generator: torch.Generator, *, second_order: bool) -> tuple[Tensor, Tensor]:
    """f(θ_t) of each task with its graph, `[tasks]`, and ∇_t, `[tasks, n]`."""
    batch = group.draw_batch(generator)
    with torch.enable_grad():
        theta = group.theta if second_order else group.theta.detach()
        theta = theta if theta.requires_grad else theta.requires_grad_()
        loss = group.losses(theta, batch)
        (gradients,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
    if second_order:
        return loss, gradients
    # First order: f's linearisation at θ_t has its value and its derivative, and needs no second pass through f.
    tangent = (gradients * (group.theta - theta.detach())).sum(dim=1)
    return loss.detach() + tangent, gradients


def _reparametrise(group: Group, augmentation: Augmentation, generator: torch.Generator) -> None:
    if not augmentation.coordinate_scaling:
        return
    spread = augmentation.coordinate_scaling
    exponents = torch.empty_like(group.theta).uniform_(-spread, spread, generator=generator)
    chosen = torch.rand(group.tasks, 1, generator=generator) < augmentation.probability
    group.scales = torch.where(chosen, exponents.exp(), 1.0)
    group.theta = group.theta / group.scales


def _draw_horizon(steps: int | LogUniform, generator: torch.Generator) -> int:
    if isinstance(steps, int):
        return steps
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return round(steps.low * (steps.high / steps.low) ** share)
