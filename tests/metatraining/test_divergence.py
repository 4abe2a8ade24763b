"""A trajectory that is not finite any more is bounded, counted, and spoils nothing."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.outer_loop import MetaTrainingError, OuterLoop
from optserve_server.metatraining.validation import held_out_meta_loss
from optserve_server.optimizers import LEARNED

STEPS, TASKS = 4, 3


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
            "unroll": {"steps": STEPS},
            "meta_optimizer": {"outer_steps": 4, "tasks_per_outer_step": TASKS},
            **changes,
        }
    )


def draw(parsed: recipes.Recipe) -> tuple[Trajectory, torch.Generator]:
    generators = Generators.seeded(0, torch.device("cpu"))
    return draw_trajectory(parsed, parsed.optimizer(), generators), generators.device


def estimate(parsed: recipes.Recipe, trajectory: Trajectory, generator: torch.Generator) -> MetaGradient:
    optimizer = parsed.optimizer()
    phi: Mapping[str, Tensor] = optimizer.initial_phi(torch.Generator().manual_seed(0))
    (group,) = trajectory.groups
    return estimators.build(parsed).estimate(optimizer, phi, group, Window(0, STEPS, STEPS), generator)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("kind", ["final", "sum", "log"])
@pytest.mark.parametrize("architecture", LEARNED)
@pytest.mark.parametrize("theta", [math.nan, math.inf, 1e20, -1e38])
def test_a_lost_task_adds_the_ceiling_and_no_gradient(
    architecture: str, kind: str, second_order: bool, theta: float
) -> None:
    parsed = recipe(
        architecture={"kind": architecture},
        meta_loss={"kind": kind, "ceiling": 50.0},
        gradient={"second_order": second_order},
    )
    trajectory, generator = draw(parsed)
    trajectory.groups[0].theta[1] = theta
    found = estimate(parsed, trajectory, generator)
    assert (found.non_finite.item(), found.lost.item()) == (1, 1)

    # The same trajectory without that task's part: it stands where its loss is the ceiling, whatever φ.
    alone, generator = draw(parsed)
    alone.groups[0].task_data["W"][1] = 0.0
    alone.groups[0].task_data["y"][1] = math.sqrt(50.0 / 2)
    expected = estimate(parsed, alone, generator)
    assert expected.non_finite.item() == 0
    torch.testing.assert_close(found.gradients, expected.gradients)
    torch.testing.assert_close(found.meta_loss, expected.meta_loss)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e15, -2e15])
@pytest.mark.parametrize("where", ["theta", "loss", "gradients"])
def test_what_is_seen_on_a_cpu_in_one_pass_is_what_torch_says(where: str, bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    fine = {name: torch.randn(3, 5, generator=generator) for name in ("theta", "gradients")}
    seen = {**fine, "loss": torch.full((3,), -9e14)}
    seen[where].view(3, -1)[1, -1] = bad
    quick, plain = Guard(3, torch.device("cpu")), Guard(3, torch.device("cpu"))
    for _ in range(2):
        strided = seen["theta"].t().contiguous().t()  # which the one pass does not take
        found, expected = quick.see(**seen), plain.see(strided, seen["loss"], seen["gradients"])
        assert torch.equal(found, expected)
        assert quick.finite.tolist() == plain.finite.tolist() == [True, False, True]
        assert found[1].tolist() == [0.0] * 5
        seen = {**seen, where: torch.ones_like(seen[where])}  # once lost, always lost
    assert torch.equal(quick.marked(torch.ones(1, 3)), plain.marked(torch.ones(1, 3)))


def test_a_derivative_that_overflows_adds_no_gradient_either() -> None:
    """θ_{t+1} = c θ_t of two tasks: all losses are finite, but the derivative of the second's last is 1e60."""
    phi = {"weight": torch.zeros((), requires_grad=True)}
    guard, theta = Guard(2, torch.device("cpu")), phi["weight"] * torch.ones(2, 1)
    for _ in range(3):
        guard.check(theta, theta.sum(dim=1))
        theta = theta * torch.tensor([[2.0], [1e20]])
    assert guard.gradients(theta.sum(dim=1), phi)["weight"].item() == 8.0 / 2
    assert guard.finite.tolist() == [True, False]


def test_a_task_that_diverges_in_the_midst_adds_no_gradient_of_its_first_losses() -> None:
    phi = {"weight": torch.ones((), requires_grad=True)}
    guard, theta, losses = Guard(2, torch.device("cpu")), phi["weight"] * torch.ones(2, 1), []
    for factor in (1.0, 1.0, 1e20):
        theta = theta * torch.tensor([[2.0], [factor]])
        losses.append(theta.sum(dim=1))
        guard.check(theta, losses[-1])
    marked = guard.marked(torch.stack(losses[1:]))
    assert marked.tolist() == [[4.0, 1.0], [8.0, math.inf]]
    bounded = marked.where(marked.isfinite(), 10.0).sum(dim=0)
    assert guard.gradients(bounded, phi)["weight"].item() == (4 + 8) / 2


def test_non_finite_tasks_are_counted_in_the_progress() -> None:
    loop = OuterLoop(recipe(unroll={"steps": STEPS, "truncation": 2}, meta_loss={"ceiling": 1e3}))
    steps = iter(loop)
    assert next(steps).non_finite == 0
    (group,) = loop._pool._trajectories[0].groups  # type: ignore[union-attr]
    group.theta[0] = math.nan
    progress = next(steps)
    assert progress.non_finite == 1
    assert progress.meta_loss > 1e3 / TASKS
    assert math.isfinite(progress.meta_gradient_norm)
    assert next(steps).non_finite == 0  # the next trajectory


def test_a_run_with_no_finite_trajectory_left_fails_and_says_where() -> None:
    settings = {"learning_rate": 1e30, "outer_steps": 10}
    loop = OuterLoop(recipe(meta_optimizer=settings, architecture={"kind": "lstm", "output_scale": 1e6}))
    with pytest.raises(
        MetaTrainingError, match=r"outer step \d+, quadratic: no trajectory is finite at inner step 4 of 4; lower"
    ) as caught:
        list(loop)
    assert caught.value.outer_step == loop.outer_step + 1
    assert caught.value.family == "quadratic"


def test_a_validation_that_diverges_has_a_bounded_loss() -> None:
    parsed = recipe(architecture={"kind": "lstm", "output_scale": 1e6}, meta_loss={"ceiling": 1e4})
    optimizer = parsed.optimizer()
    phi = {name: torch.full_like(weight, 1e30) for name, weight in optimizer.initial_phi(torch.Generator()).items()}
    assert held_out_meta_loss(parsed, optimizer, phi, STEPS) == 1e4
