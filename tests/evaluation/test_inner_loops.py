"""The inner loops: what a plain training loop computes, on the same tasks for all."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import entrant, plan

from optserve_server.evaluation import inner_loops
from optserve_server.evaluation.plans import Plan
from optserve_server.evaluation.summaries import Losses
from optserve_server.metatraining.tables import TaskShare
from optserve_server.optimizers import HiddenState, Observations, Optimizer, build

DIGITS = {"family": "digits-mlp", "parameters": {"hidden_sizes": [3], "batch_size": 8}}


def losses_of(plan: Plan, optimizer: Optimizer, rates: Sequence[float] = (1.0,), phi: Any = None) -> Losses:
    running = inner_loops.run(plan.tasks[0], optimizer, phi or {}, plan, rates)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def torch_optimizer(kind: str, theta: torch.Tensor, rate: float) -> torch.optim.Optimizer:
    if kind == "nesterov":
        return torch.optim.SGD([theta], lr=rate, momentum=0.9, nesterov=True)
    classes = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return classes[kind]([theta], lr=rate)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "rmsprop", "adam", "adamw"])
def test_a_baselines_losses_are_those_of_a_pytorch_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    draw = inner_loops.draw_groups
    monkeypatch.setattr(inner_loops, "draw_groups", lambda *given: groups.extend(draw(*given)) or groups[-1:])
    rates = (0.001, 0.01, 0.05)
    found = losses_of(plan("quadratic", steps=6), build({"kind": kind, "lr": 1.0}), rates)
    assert found.shape == (3, 3, 7)
    (group,) = groups
    for row, rate in enumerate(rates):
        for seed in range(3):
            w, y = group.task_data["W"][seed], group.task_data["y"][seed]
            theta = group.theta[seed].clone().requires_grad_()
            optimizer = torch_optimizer(kind, theta, rate)
            expected = []
            for _ in range(7):
                loss = (w @ theta - y).square().sum()
                expected.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            np.testing.assert_allclose(found[row, seed], expected, rtol=2e-5)


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
    # f(θ_t) = (1 − lr)^{2t} f(θ_0)
    expected = found[0, :, :1] * 0.99 ** (2 * inner_loops.points(1_003))
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)


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
    steps = list(inner_loops.run(TaskShare(family="bowl"), build({"kind": "sgd"}), {}, chosen))
    assert steps == [50, 100, 120]
