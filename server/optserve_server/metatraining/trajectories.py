"""Trajectories: the inner loops θ_{t+1} = θ_t + g_t of many tasks at once, unrolled window by window.

The tasks of one family are a *group* and are stepped together. To a coordinatewise optimizer a group hands all its
tasks' coordinates as one long row, which is twice as fast as a batch of short ones; to any other, a batch of tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optserve_server.metatraining import perceptrons
from optserve_server.metatraining.differentiation import losses_and_gradients
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.perceptrons import perceptron_of
from optserve_server.metatraining.tables import TaskShare
from optserve_server.metatraining.told import Told
from optserve_server.metatraining.training_checkpoints import State
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Phi, Updates, initial_state
from optserve_server.optimizers.steppers import Stepper, stepper
from optserve_server.tasks.base import Batch, Split, TaskData, TaskFamily, Theta, vectorized


@dataclass
class Group:
    """The inner loops of some tasks of one family, the recipe's `share`-th, at step t.

    `theta` is θ_t (of the reparametrised task, where `scales` is given), `[tasks, n]`; `scales` is c of f(c ⊙ z),
    `[tasks, n]`. `state` is h_t: of all tasks' coordinates as one row, `[features, tasks·n]`, where the optimizer is
    coordinatewise, and else of each task, `[tasks, features, n]`. `initial_loss` is f(θ_0), `[tasks]`, once it has been
    evaluated; `parameters` are those that the family was built with; `told` is what the optimizer is told instead of
    the truth, if anything; a `teacher` compares the updates with its own.
    """

    share: int
    family: TaskFamily
    task_data: TaskData
    theta: Theta
    state: HiddenState
    scales: Tensor | None = None
    initial_loss: Tensor | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    told: Told | None = None
    teacher: Teacher | None = None

    @property
    def in_one_row(self) -> bool:
        """Whether the optimizer gets all tasks' coordinates as one row."""
        return self.state.coordinates.dim() == 2

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

    def stepper(self, optimizer: Optimizer, phi: Phi, steps: int, *, second_order: bool) -> Stepper:
        """What steps the optimizer through the next window."""
        return stepper(optimizer, phi, self.state, steps, second_order=second_order)

    def move(self, updates: Updates) -> None:
        """θ_{t+1} = θ_t + g_t."""
        self.theta = self.theta + updates.view_as(self.theta)

    def detach(self) -> None:
        """Cut the graph: the next window starts here."""
        self.theta = self.theta.detach()
        arrays = {name: array.detach() for name, array in self.state.arrays.items()}
        self.state = HiddenState(self.state.coordinates.detach(), arrays)

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return {
            "share": self.share,
            "task_data": self.task_data,
            "theta": self.theta,
            "state": self.state._asdict(),
            "scales": self.scales,
            "initial_loss": self.initial_loss,
            "parameters": self.parameters,
            "told": None if self.told is None else self.told.to_state(),
            "teacher": None if self.teacher is None else self.teacher.to_state(),
        }

    @classmethod
    def from_state(cls, shares: Sequence[TaskShare], state: State) -> Self:
        """The group, over the recipe's tasks, whose `to_state` this is."""
        family = shares[state["share"]].with_parameters(state["parameters"]).build()
        told = None if state["told"] is None else Told(**state["told"])
        teacher = None if state["teacher"] is None else Teacher(**state["teacher"])
        hidden_state = HiddenState(**state["state"])
        return cls(**{**state, "family": family, "state": hidden_state, "told": told, "teacher": teacher})


def draw_groups(
    shares: Sequence[TaskShare], counts: Sequence[int], optimizer: Optimizer, generator: torch.Generator, split: Split
) -> list[Group]:
    """One group of `counts[i]` tasks for each share that has any, at θ_0 and h_0."""
    groups = []
    for number, count in enumerate(counts):
        if count:
            family = shares[number].build()
            theta = family.initial(generator, count)
            state = _initial_state(optimizer, family, theta)
            data = family.sample(generator, count, split)
            groups.append(Group(number, family, data, theta, state, parameters=shares[number].parameters))
    return groups


def unroll(
    group: Group,
    optimizer: Optimizer,
    phi: Phi,
    *,
    first_step: int,
    steps: int,
    horizon: int,
    generator: torch.Generator,
    second_order: bool,
    guard: Guard | None = None,
) -> Tensor:
    """Step a group `steps` times from step `first_step` of `horizon` on: f(θ) after each step, `[steps, tasks]`.

    f(θ_t) is taken on the minibatch of step t, and the last on a fresh one. The losses carry the graph back to φ; with
    `second_order` through ∂∇_t/∂φ too. With a `guard`, tasks that diverge do not disturb the others' gradients.
    """
    clocks = torch.arange(first_step, first_step + steps, dtype=torch.float64, device=group.theta.device)
    taken = group.stepper(optimizer, phi, steps, second_order=second_order)
    linearised = torch.is_grad_enabled() and not second_order
    losses: list[Tensor] = []
    slopes: list[Tensor] = []
    with taken.at_work():
        for clock in clocks.unsqueeze(1).unbind():
            loss, gradients = _loss_and_gradients(group, generator, second_order=second_order)
            losses.append(loss)
            if group.initial_loss is None:
                group.initial_loss = loss.detach()
            if guard is not None:
                gradients = guard.see(group.theta, loss, gradients)
            if linearised:
                slopes.append(gradients)
            observations = _observations(group, optimizer, guard, loss, gradients, clock, horizon)
            updates = taken.step(observations)
            if group.teacher is not None:
                group.teacher.see(observations, updates)
            group.move(updates if second_order else updates.detach())
        group.state = taken.state
        if linearised:
            return _linearised(group, taken, losses, slopes, generator, guard)
        losses.append(_loss(group, generator))
        followed = torch.stack(losses[1:])
        if guard is None:
            return followed
        guard.check(group.theta, losses[-1])
        return guard.marked(followed)


def _initial_state(optimizer: Optimizer, family: TaskFamily, theta: Theta) -> HiddenState:
    if optimizer.coordinatewise:
        return initial_state(optimizer, ((theta.numel(),),), like=theta)
    return initial_state(optimizer, tuple(family.shapes.values()), (theta.shape[0],), like=theta)


def _observations(
    group: Group,
    optimizer: Optimizer,
    guard: Guard | None,
    loss: Tensor,
    gradients: Tensor,
    clock: Tensor,
    horizon: int,
) -> Observations:
    """What the optimizer is told; `gradients` are as the guard shows them."""

    def shown(of_tasks: Tensor) -> Tensor:
        return of_tasks if guard is None else guard.shown(of_tasks)

    told = group.told
    if told is not None:
        gradients = told.gradients(gradients, clock)
    if group.in_one_row:
        theta = shown(group.theta).flatten() if "parameters" in optimizer.uses else None
        return Observations(gradients.flatten(), clock, theta)
    shapes = tuple(group.family.shapes.values())
    theta, seen, horizons = shown(group.theta), shown(loss), torch.full_like(loss, float(horizon))
    if told is None:
        return Observations(gradients, clock, theta, seen, horizons, shapes)
    assert group.initial_loss is not None
    told_loss = shown(told.losses(loss, group.initial_loss)) if told.loss else None
    return Observations(gradients, clock, theta, told_loss, horizons if told.horizon else None, shapes)


def _loss(group: Group, generator: torch.Generator) -> Tensor:
    """f(θ_t) of each task, `[tasks]`, with its graph where one is wanted."""
    batch = group.draw_batch(generator)
    form = None if torch.is_grad_enabled() else perceptron_of(group, batch)
    return group.losses(group.theta, batch) if form is None else perceptrons.losses_and_gradients(form, group, batch)[0]


def _loss_and_gradients(group: Group, generator: torch.Generator, *, second_order: bool) -> tuple[Tensor, Tensor]:
    """f(θ_t) of each task, `[tasks]`, and ∇_t, `[tasks, n]`; with their graph if `second_order`."""
    batch = group.draw_batch(generator)
    if not second_order:
        return losses_and_gradients(group, batch)
    with torch.enable_grad():
        theta = group.theta if group.theta.requires_grad else group.theta.detach().requires_grad_()
        loss = group.losses(theta, batch)
        (gradients,) = torch.autograd.grad(loss.sum(), theta, create_graph=True)
    return loss, gradients


def _linearised(
    group: Group,
    taken: Stepper,
    losses: list[Tensor],
    slopes: list[Tensor],
    generator: torch.Generator,
    guard: Guard | None,
) -> Tensor:
    """The losses after each step, `[steps, tasks]`, that follow the updates as f(θ_t) does by its gradient, held fixed.

    f's linearisation at θ_t has its value and its derivative, and needs no second pass through f.
    """
    loss, gradients = _loss_and_gradients(group, generator, second_order=False)
    if guard is not None:
        gradients = guard.see(group.theta, loss, gradients)
    followed, fixed = torch.stack([*losses[1:], loss]), torch.stack([*slopes[1:], gradients])
    updates = taken.updates()
    if group.teacher is not None:
        group.teacher.updates = list(updates)
    followed = _Linearised.apply(followed, fixed, updates.view_as(fixed))  # type: ignore[no-untyped-call]
    return followed if guard is None else guard.marked(followed)


class _Linearised(torch.autograd.Function):
    """Losses `[steps, tasks]` as they are, with the derivative of ∇_t · Σ_{s≤t} g_s for that of the loss after step t.

    `slopes` are ∇_t and `updates` g_s, both `[steps, tasks, n]`.
    """

    @staticmethod
    def forward(ctx: Any, losses: Tensor, slopes: Tensor, updates: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return None, None, (cotangents.unsqueeze(2) * slopes).flip(0).cumsum(dim=0).flip(0)
