"""The inner loops: what a plain training loop computes, on the same tasks for all."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import schedulefree
import torch
from tests.evaluation.conftest import entrant, plan

from optserve_server.evaluation import inner_loops
from optserve_server.evaluation.inner_loops import Measured
from optserve_server.evaluation.plans import Plan, PlannedTask
from optserve_server.evaluation.rules import BASELINES, Rule
from optserve_server.evaluation.summaries import Losses
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import HiddenState, Observations, Optimizer, build

DIGITS = {"family": "digits-mlp", "parameters": {"hidden_sizes": [3], "batch_size": 8}}


def measured(plan: Plan, rule: Rule, rates: Sequence[float] = (1.0,), *horizons: int) -> list[Measured]:
    running = inner_loops.run(plan.tasks[0], rule, plan, horizons or plan.horizons, rates)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def losses_of(plan: Plan, optimizer: Optimizer, rates: Sequence[float] = (1.0,), phi: Any = None) -> Losses:
    (found,) = measured(plan, Rule(optimizer, phi or {}), rates)
    return found.losses


def plain_losses(name: str, group: Group, seed: int, rate: float, steps: int) -> list[float]:
    """Of a training loop that somebody would write with PyTorch's optimizers, on the quadratic of one seed."""
    w, y = group.task_data["W"][seed], group.task_data["y"][seed]
    theta = group.theta[seed].clone().requires_grad_()
    optimizer = {
        "sgd": lambda: torch.optim.SGD([theta], lr=rate),
        "momentum": lambda: torch.optim.SGD([theta], lr=rate, momentum=0.9),
        "nesterov": lambda: torch.optim.SGD([theta], lr=rate, momentum=0.9, nesterov=True),
        "rmsprop": lambda: torch.optim.RMSprop([theta], lr=rate),
        "adam": lambda: torch.optim.Adam([theta], lr=rate),
        "adamw": lambda: torch.optim.AdamW([theta], lr=rate),
        "adam-cosine": lambda: torch.optim.Adam([theta], lr=rate),
        "schedule-free-adamw": lambda: schedulefree.AdamWScheduleFree([theta], lr=rate),
    }[name]()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if name == "adam-cosine" else None
    if name == "schedule-free-adamw":
        optimizer.train()
    losses = []
    for _ in range(steps):
        loss = (w @ theta - y).square().sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    if name == "schedule-free-adamw":
        optimizer.eval()
    return [*losses, (w @ theta - y).square().sum().item()]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baselines_losses_are_those_of_a_pytorch_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    draw = inner_loops.draw_groups
    monkeypatch.setattr(inner_loops, "draw_groups", lambda *given: groups.extend(draw(*given)) or groups[-1:])
    rates = (0.001, 0.01, 0.05)
    (found,) = measured(plan("quadratic", steps=12), BASELINES[name], rates)
    assert found.losses.shape == (3, 3, 13)
    assert found.held_out is None
    (group,) = groups
    for row, rate in enumerate(rates):
        for seed in range(3):
            expected = plain_losses(name, group, seed, rate, 12)
            np.testing.assert_allclose(found.losses[row, seed], expected, rtol=5e-5)


@pytest.mark.parametrize("name", ["adam", "adam-cosine", "schedule-free-adamw"])
def test_several_horizons_are_what_each_is_alone(name: str) -> None:
    """The shorter T are points of the longest, unless the rate goes by T; minibatches are the same either way."""
    several, rule = plan(DIGITS, horizons=[7, 60, 70]), BASELINES[name]
    alone = [measured(several, rule, (0.01, 0.02), horizon)[0] for horizon in several.horizons]
    assert [one.losses.shape for one in alone] == [(2, 3, 8), (2, 3, 61), (2, 3, 71)]
    if rule.knows_horizon:
        assert not np.allclose(alone[0].losses[:, :, 5], alone[1].losses[:, :, 5], rtol=1e-3)
        return
    for together, one in zip(measured(several, rule, (0.01, 0.02)), alone, strict=True):
        np.testing.assert_array_equal(together.losses, one.losses)
        np.testing.assert_array_equal(together.held_out, one.held_out)


def test_held_out_losses_are_of_rows_that_the_inner_loop_has_not_seen() -> None:
    """Logistic regression has no minibatches: all is known, and three seeds are three samples of rows."""
    task = {"family": "logistic-regression", "parameters": {"data": "iris", "rows": 4, "l2": 0.0}}
    (found,) = measured(plan(task, steps=300), BASELINES["adam"], (0.0, 0.3))
    assert found.held_out is not None
    assert found.held_out.shape == (2, 3)
    assert found.losses[1, :, -1].max() < 0.02  # four rows are learned by heart
    assert found.held_out[1].min() > 0.05
    # θ_0 has seen neither half.
    np.testing.assert_allclose(found.held_out[0], found.losses[0, :, -1], rtol=1)


def test_every_optimizer_gets_the_same_tasks_initial_values_and_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """φ that moves nothing, and rates of 0, see the same loss of the same minibatch at each step."""
    chosen = plan(DIGITS, steps=12)
    still = entrant()
    phi = {name: torch.zeros_like(weight) for name, weight in still.phi.items()}
    learned = losses_of(chosen, still.optimizer, phi=phi)
    baselines = losses_of(chosen, build({"kind": "adam", "lr": 1.0}), (0.0, 0.0))
    np.testing.assert_allclose(baselines[1], learned[0], rtol=1e-6)
    assert np.unique(learned[0].round(6)).size > 30  # other minibatches at every step, for every seed
    monkeypatch.setattr(inner_loops, "_LARGEST_THETA", 1)
    taking_turns = losses_of(chosen, build({"kind": "adam", "lr": 1.0}), (0.0, 0.0))
    np.testing.assert_allclose(taking_turns, baselines, rtol=1e-6)


def test_tasks_are_held_out_and_decided_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    draw = inner_loops.draw_groups
    monkeypatch.setattr(inner_loops, "draw_groups", lambda *given: splits.append(given[-1]) or draw(*given))
    sgd = build({"kind": "sgd", "lr": 0.01})
    one, two, three = (losses_of(plan("quadratic", seed=seed), sgd) for seed in (0, 0, 1))
    assert splits == ["held-out"] * 3
    np.testing.assert_array_equal(one, two)
    assert not np.isclose(one, three).any()


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    steps = inner_loops.points(12_345).tolist()
    assert (steps[0], steps[-1], len(steps)) == (0, 12_345, 201)
    assert inner_loops.points(7).tolist() == list(range(8))
    found = losses_of(plan("bowl", steps=1_003), build({"kind": "sgd", "lr": 0.01}))
    assert found.shape == (1, 3, 201)
    # f(θ_t) = (1 − lr)^{2t} f(θ_0), and a point is the mean since the one before.
    expected = [
        np.mean(0.99 ** (2.0 * np.arange(low + 1, high + 1))) for low, high in pairwise(inner_loops.points(1_003))
    ]
    np.testing.assert_allclose(found[0, :, 1:-1] / found[0, :, :1], [expected[:-1]] * 3, rtol=1e-3)
    np.testing.assert_allclose(found[0, :, -1] / found[0, :, 0], 0.99**2006, rtol=1e-3)


def test_the_ends_of_a_curve_are_means_over_fresh_minibatches() -> None:
    noisy = {"family": "bowl", "parameters": {"noise": 1.0, "curvature": 0.0}}
    found = losses_of(plan(noisy, seeds=400, steps=3), build({"kind": "sgd"}))[0]
    assert found[:, [1, 2]].std() == pytest.approx(1, rel=0.1)
    assert found[:, [0, 3]].std() == pytest.approx(1 / 4, rel=0.1)


def test_an_optimizer_is_told_the_loss_and_the_horizon() -> None:
    class Recording:
        kind: ClassVar[str] = "recording"
        learned = True
        coordinatewise = False
        features = ()
        session_arrays: ClassVar[dict[str, int]] = {}

        def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
            return {}

        def step(self, phi: Any, seen: Observations, state: HiddenState) -> tuple[torch.Tensor, HiddenState]:
            assert seen.loss is not None
            losses.append(seen.loss)
            horizons.append(seen.horizon)
            assert seen.shapes == ((2, 1), (1,))
            return -0.1 * seen.gradients, state

    losses: list[torch.Tensor] = []
    horizons: list[Any] = []
    found = losses_of(plan("bowl", steps=60), Recording())  # type: ignore[arg-type]
    np.testing.assert_allclose(torch.stack(losses).T, found[0, :, :60], rtol=1e-6)
    assert all(horizon.tolist() == [60.0] * 3 for horizon in horizons)


def test_it_yields_at_every_window_so_that_it_can_be_stopped() -> None:
    chosen = plan("bowl", steps=120)
    running = inner_loops.run(PlannedTask(family="bowl"), Rule(build({"kind": "sgd"})), chosen, chosen.horizons)
    assert list(running) == [50, 100, 120]
