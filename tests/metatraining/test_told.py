"""What optimizers are told instead of the truth; they are judged by the truth all the same."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import Generators, draw_trajectory
from optserve_server.metatraining.estimators import Window
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.tables import Augmentation
from optserve_server.metatraining.told import Told, draw_told
from optserve_server.metatraining.trajectories import Group, draw_groups, unroll
from optserve_server.optimizers import HiddenState, Observations, Updates

TASKS, HORIZON = 3, 6


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "hierarchical", "hidden_size": 4, "scheduler_size": 4},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
            "unroll": {"steps": HORIZON},
            "meta_optimizer": {"tasks_per_outer_step": TASKS},
            **changes,
        }
    )


class Listener:
    """A stepper that notes what it is told, and takes steps of a hundredth."""

    def __init__(self, state: HiddenState) -> None:
        self.state = state
        self.heard: list[Observations] = []

    def at_work(self) -> Any:
        return nullcontext()

    def step(self, observations: Observations) -> Updates:
        self.heard.append(observations)
        return torch.full_like(observations.gradients, 0.01)


def listen(group: Group, told: Told | None, guard: Guard | None = None) -> tuple[list[Observations], Tensor]:
    """What is told in three steps, and the losses after each."""
    listener, parsed = Listener(group.state), recipe()
    group.told, group.initial_loss = told, None
    group.stepper = lambda *_, **__: listener  # type: ignore[assignment, return-value, method-assign]
    with torch.no_grad():
        losses = unroll(
            group,
            *(parsed.optimizer(), {}),
            first_step=0,
            steps=3,
            horizon=HORIZON,
            generator=torch.Generator(),
            second_order=False,
            guard=guard,
        )
    return listener.heard, losses


def drawn(parsed: recipes.Recipe) -> Group:
    (group,) = draw_groups(parsed.tasks, [TASKS], parsed.optimizer(), torch.Generator().manual_seed(0), "train")
    return group


def particles(parsed: recipes.Recipe) -> Group:
    optimizer, generator = parsed.optimizer(), torch.Generator().manual_seed(1)
    return estimators.build(parsed).begin(drawn(parsed), optimizer, optimizer.initial_phi(generator), generator)


@pytest.mark.parametrize("estimator", ["backpropagation", "es"])
def test_offsets_and_factors_change_what_is_heard_and_not_what_is_true(estimator: str) -> None:
    parsed = recipe(gradient={"estimator": estimator})
    begin = drawn if estimator == "backpropagation" else particles
    truth, losses = listen(begin(parsed), None)
    offsets, factors = torch.tensor([0.0, -1.0, 1.5]), torch.tensor([1.0, 1e-7, 1e7])
    heard, losses_again = listen(begin(parsed), Told(offsets=offsets, factors=factors))
    assert torch.equal(losses, losses_again)
    initial = truth[0].loss
    assert initial is not None
    for true, told in zip(truth, heard, strict=True):
        assert true.loss is not None
        assert told.loss is not None
        repeats = len(true.loss) // TASKS  # particle by particle
        torch.testing.assert_close(told.loss, true.loss + offsets.repeat(repeats) * initial.abs())
        torch.testing.assert_close(told.gradients, true.gradients * factors.repeat(repeats)[:, None])
        assert torch.equal(told.parameters, true.parameters)  # type: ignore[arg-type]
        assert torch.equal(told.horizon, true.horizon)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["backpropagation", "es"])
def test_while_a_gradient_pauses_it_is_heard_as_0(estimator: str) -> None:
    parsed = recipe(gradient={"estimator": estimator})
    begin = drawn if estimator == "backpropagation" else particles
    truth, losses = listen(begin(parsed), None)
    heard, losses_again = listen(begin(parsed), Told(pauses=torch.tensor([[0.5, 1.7, 0.3], [1.5, 9.0, 0.3]])))
    assert torch.equal(losses, losses_again)
    pauses = [[False, False, False], [True, False, False], [False, True, False]]
    for true, told, paused in zip(truth, heard, pauses, strict=True):
        expected = true.gradients.unflatten(0, (-1, TASKS)).clone()
        expected[:, paused] = 0
        assert torch.equal(told.gradients, expected.flatten(0, 1))


@pytest.mark.parametrize(("loss", "horizon"), [(True, False), (False, True), (False, False)])
def test_loss_and_horizon_may_be_hidden(loss: bool, horizon: bool) -> None:
    heard, losses = listen(drawn(recipe()), Told(loss, horizon))
    assert all((one.loss is not None, one.horizon is not None) == (loss, horizon) for one in heard)
    assert torch.equal(losses, listen(drawn(recipe()), None)[1])


def test_of_a_task_that_is_not_finite_nothing_is_told() -> None:
    """An offset times an infinite f(θ_0) must not get past the guard."""
    group = drawn(recipe())
    group.theta[1] = math.inf
    told = Told(offsets=torch.tensor([0.0, 0.0, 1.0]))
    heard, _ = listen(group, told, Guard(TASKS, torch.device("cpu")))
    for one in heard:
        assert one.loss is not None
        assert one.loss.isfinite().all()
        assert one.loss[1] == 0


def test_what_is_asked_for_is_drawn() -> None:
    def draw(tasks: int = 2000, steps: int = 100, **shares: float) -> Told | None:
        generator = torch.Generator().manual_seed(0)
        return draw_told(Augmentation(**shares), tasks, steps, generator, generator)

    assert draw(coordinate_scaling=1.0, task_scaling=1.0) is None
    one = draw(loss_offset=0.25, gradient_scaling=0.5)
    assert one is not None
    assert (one.loss, one.horizon, one.pauses) == (True, True, None)
    assert one.offsets is not None
    assert one.factors is not None
    assert (one.offsets != 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert (one.factors != 1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert -1 <= one.offsets.min() < -0.9 < 1.9 < one.offsets.max() <= 2
    assert -18 <= one.factors.log().min() < -17 < 17 < one.factors.log().max() <= 18
    paused = draw(pauses=0.5)
    assert paused is not None
    assert (paused.offsets, paused.factors) == (None, None)
    assert paused.pauses is not None
    begun, ended = paused.pauses[:, paused.pauses[1] > paused.pauses[0]]
    assert len(begun) == pytest.approx(1000, abs=80)
    assert 0 <= begun.min() < 2
    assert 98 < begun.max() < 100
    assert 5 <= (ended - begun).min() < 7
    assert 198 < (ended - begun).max() <= 200
    hidden = [draw(1, hidden_loss=1.0), draw(1, hidden_horizon=1.0)]
    assert [(one.loss, one.horizon) for one in hidden if one] == [(False, True), (True, False)]


def test_hidden_is_hidden_for_a_trajectory_and_in_its_share() -> None:
    parsed = recipe(augmentation={"hidden_loss": 0.3, "hidden_horizon": 0.6})
    generators = Generators.seeded(0, torch.device("cpu"))
    told = [draw_trajectory(parsed, parsed.optimizer(), generators).groups[0].told for _ in range(400)]
    assert sum(not one.loss for one in told if one) == pytest.approx(120, abs=30)
    assert sum(not one.horizon for one in told if one) == pytest.approx(240, abs=30)


def test_the_meta_loss_is_of_the_truth() -> None:
    """Against an inner loop whose optimizer is handed c∇f, and whose last f is measured."""
    parsed = recipe(architecture={"kind": "lstm", "hidden_size": 4, "layers": 1, "output_scale": 1.0})
    optimizer, group = parsed.optimizer(), drawn(parsed)
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 1e-3, 50.0])
    group.told = Told(loss=False, horizon=False, offsets=torch.full((TASKS,), 2.0), factors=factors)
    w, y, theta, state = group.task_data["W"], group.task_data["y"], group.theta, group.state
    for step in range(HORIZON):
        residual = torch.einsum("tij,tj->ti", w, theta) - y
        gradients = factors[:, None] * 2 * torch.einsum("tij,ti->tj", w, residual)
        updates, state = optimizer.step(phi, Observations(gradients.flatten(), torch.tensor([float(step)])), state)
        theta = theta + updates.view_as(theta)
    expected = (torch.einsum("tij,tj->ti", w, theta) - y).square().sum() / TASKS
    window = Window(0, HORIZON, HORIZON)
    found = estimators.build(parsed).estimate(optimizer, phi, group, window, torch.Generator())
    torch.testing.assert_close(found.meta_loss, expected)
    assert expected != pytest.approx(listen(drawn(parsed), None)[1][-1].mean().item(), rel=0.01)
