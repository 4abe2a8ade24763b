"""The outer loop computes what its recipe says."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from optserve_server import optimizers
from optserve_server.metatraining import estimators, outer_loop, recipes, validation
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.metatraining.weight_files import Record
from optserve_server.optimizers import weights

TINY: dict[str, Any] = {
    "name": "tiny",
    "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
    "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
    "unroll": {"steps": 5},
    "meta_optimizer": {"kind": "gradient-descent", "outer_steps": 4, "tasks_per_outer_step": 3},
    "checkpoints": {"every": 2},
}


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse({**TINY, **changes})


def draw(parsed: recipes.Recipe, seed: int = 5) -> tuple[Trajectory, torch.Generator]:
    """The first trajectory of a seed, and the generator that it goes on with."""
    generators = Generators.seeded(seed, torch.device("cpu"))
    return draw_trajectory(parsed, parsed.optimizer(), generators), generators.device


def estimate(parsed: recipes.Recipe, phi: Any, trajectory: Trajectory, generator: torch.Generator) -> MetaGradient:
    """Backpropagation through the next window of a trajectory that has one group."""
    (group,) = trajectory.groups
    steps = min(parsed.unroll.window, trajectory.horizon - trajectory.step)
    window = Window(trajectory.step, steps, trajectory.horizon)
    trajectory.step += steps
    return estimators.build(parsed).estimate(parsed.optimizer(), phi, group, window, generator)


def test_first_order_drops_the_gradients_own_derivative() -> None:
    """Against an unroll whose ∇_t is computed by hand and detached."""
    parsed = recipe(gradient={"second_order": False}, meta_loss={"kind": "sum"})
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    trajectory, generator = draw(parsed)
    group = trajectory.groups[0]
    w, y, theta, state = group.task_data["W"], group.task_data["y"], group.theta, group.state
    found = estimate(parsed, phi, trajectory, generator)

    leaves = {name: weight.clone().requires_grad_() for name, weight in phi.items()}
    total = torch.zeros(())
    for step in range(5):
        residual = torch.einsum("tij,tj->ti", w, theta) - y
        gradients = (2 * torch.einsum("tij,ti->tj", w, residual)).detach()
        clock = torch.tensor([float(step)])
        updates, state = optimizer.step(leaves, optimizers.Observations(gradients.flatten(), clock), state)
        theta = theta + updates.view_as(theta)
        total = total + (torch.einsum("tij,tj->ti", w, theta) - y).square().sum() / 3
    assert found.meta_loss.item() == pytest.approx(total.item(), rel=1e-5)
    expected = torch.autograd.grad(total, list(leaves.values()))
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_truncated_windows_cover_the_trajectory_once() -> None:
    loop = OuterLoop(recipe(unroll={"steps": 6, "truncation": 2}, meta_optimizer={"outer_steps": 6}))
    assert [(progress.step, progress.horizon) for progress in loop] == [(2, 6), (4, 6), (6, 6)] * 2


def test_one_outer_step_is_the_equation() -> None:
    """φ ← φ − β∇_φL(φ) with plain gradient descent."""
    loop = OuterLoop(recipe(meta_optimizer={"outer_steps": 1, "learning_rate": 0.25}))
    before = {name: weight.detach().clone() for name, weight in loop.phi.items()}
    next(iter(loop))
    generators = Generators.seeded(loop.recipe.seed, torch.device("cpu"))
    loop.optimizer.initial_phi(generators.host)
    trajectory = draw_trajectory(loop.recipe, loop.optimizer, generators)
    gradients = estimate(loop.recipe, before, trajectory, generators.device).gradients
    for name, weight in loop.phi.items():
        torch.testing.assert_close(weight.detach(), before[name] - 0.25 * gradients[name])


def test_averaging_keeps_a_running_mean_of_phi() -> None:
    loop = OuterLoop(recipe(meta_optimizer={"outer_steps": 4, "learning_rate": 0.5, "averaging": 0.6}))
    expected = torch.zeros(1)
    for number, _ in enumerate(loop, start=1):
        decay = min(0.6, 1 - 1 / number)
        expected = decay * expected + (1 - decay) * loop.phi["output.bias"].detach()
        torch.testing.assert_close(loop.averaged_phi["output.bias"], expected)
    assert not torch.equal(loop.averaged_phi["output.bias"], loop.phi["output.bias"].detach())
    plain = OuterLoop(recipe(meta_optimizer={"outer_steps": 1, "learning_rate": 0.5}))
    next(iter(plain))
    assert torch.equal(plain.averaged_phi["output.bias"], plain.phi["output.bias"].detach())


@pytest.mark.parametrize("second_order", [True, False])
def test_the_same_seed_gives_the_same_phi_bit_for_bit(second_order: bool) -> None:
    parsed = recipe(meta_optimizer={"kind": "adam", "outer_steps": 4}, gradient={"second_order": second_order})
    runs = []
    for _ in range(2):
        loop = OuterLoop(parsed)
        record = Record()
        for progress in loop:
            record.add(progress, loop)
        runs.append(record.encode(parsed))
    assert runs[0] == runs[1]


def test_windows_of_a_trajectory_are_the_trajectory() -> None:
    """φ standing still, windows of 5 and 5 steps end where one of 10 does: θ, h_t and the clock are carried over."""
    ends = []
    for truncation in (10, 5):
        parsed = recipe(unroll={"steps": 10, "truncation": truncation}, architecture={"kind": "rnnprop"})
        phi = parsed.optimizer().initial_phi(torch.Generator().manual_seed(0))
        trajectory, generator = draw(parsed)
        while not trajectory.finished:
            estimate(parsed, phi, trajectory, generator)
        ends.append(trajectory.groups[0])
    torch.testing.assert_close(ends[0].theta, ends[1].theta)
    torch.testing.assert_close(ends[0].state.coordinates, ends[1].state.coordinates)


def test_the_held_out_meta_loss_is_of_held_out_tasks_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [
        {"family": "quadratic", "weight": 3.0},
        {"family": "digits-mlp", "weight": 1.0, "parameters": {"hidden_sizes": [2], "batch_size": 2}},
    ]
    splits = []

    def recording(*arguments: Any) -> Any:
        splits.append(arguments[-1])
        return draw_groups(*arguments)

    monkeypatch.setattr(validation, "draw_groups", recording)
    parsed = recipe(tasks=shares)
    optimizer = parsed.optimizer()
    phi = {name: torch.zeros_like(weight) for name, weight in optimizer.initial_phi(torch.Generator()).items()}
    found = validation.held_out_meta_loss(parsed, optimizer, phi, 5, tasks=2000)
    assert splits == ["held-out"]
    # φ = 0 moves nothing: E‖Wθ_0 − y‖² = d² + d of d = 10, and about ln 10 for ten classes.
    assert found == pytest.approx((3 * 110 + math.log(10)) / 4, rel=0.1)


def test_the_record_keeps_the_best_averaged_phi() -> None:
    loop = OuterLoop(recipe(meta_optimizer={"outer_steps": 3, "averaging": 0.5}, checkpoints={"every": 1}))
    record, kept = Record(), []
    for progress, held_out in zip(loop, [3.0, 1.0, 2.0], strict=True):
        kept.append({name: weight.clone() for name, weight in loop.averaged_phi.items()})
        record.add(dataclasses.replace(progress, meta_loss_held_out=held_out), loop)
    assert (record.best_outer_step, record.best_meta_loss_held_out) == (2, 1.0)
    _, phi, metadata = weights.decode(record.encode(loop.recipe))
    assert all(torch.equal(phi[name], weight) for name, weight in kept[1].items())
    assert recipes.parse(json.loads(metadata["recipe"])) == loop.recipe
    assert json.loads(metadata["recipe"])["meta_loss"]["floor"] == 1e-6  # defaults are written down too


def test_what_is_validated_is_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = OuterLoop(recipe(meta_optimizer={"outer_steps": 2, "learning_rate": 0.5, "averaging": 0.5}))
    seen = []
    monkeypatch.setattr(outer_loop, "held_out_loss", lambda *arguments: seen.append(arguments[2]) or 1.0)
    list(loop)
    assert seen == [loop.averaged_phi]


def test_a_run_learns_and_its_file_tells_where_it_came_from() -> None:
    parsed = recipe(
        meta_optimizer={"kind": "adam", "learning_rate": 0.02, "outer_steps": 60, "tasks_per_outer_step": 16},
        unroll={"steps": 20, "truncation": 10},
        meta_loss={"kind": "log"},
        gradient={"second_order": False},
        checkpoints={"every": 20},
    )
    loop, record = OuterLoop(parsed), Record()
    held_out = []
    for progress in loop:
        record.add(progress, loop)
        held_out += [] if progress.meta_loss_held_out is None else [progress.meta_loss_held_out]
    assert len(held_out) == 3
    assert record.best_meta_loss_held_out == min(held_out) < 2.0  # θ_0 has an expected loss of 6
    optimizer, phi, metadata = weights.decode(record.encode(parsed))
    assert optimizer == parsed.optimizer()
    assert torch.equal(phi["output.weight"], record.best_phi["output.weight"])  # type: ignore[index]
    assert {"recipe", "seed", "torch", "meta_losses", "metrics", "optimizer"} <= metadata.keys()


def test_groups_of_no_tasks_are_left_out() -> None:
    parsed = recipe()
    assert draw_groups(parsed.tasks, [0], parsed.optimizer(), torch.Generator(), "train") == []
