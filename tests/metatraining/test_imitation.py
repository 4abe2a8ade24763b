"""The teacher is torch.optim.Adam on the learner's gradients, and pulls the learner to it."""

from typing import Any

import pytest
import torch

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import Generators, draw_trajectory
from optserve_server.metatraining.estimators import Window
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import Optimizer, Updates
from optserve_server.optimizers.base import Observations

RATE, TASKS, STEPS = 0.05, 3, 4


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "rnnprop", "hidden_size": 4, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
            "unroll": {"steps": STEPS},
            "meta_optimizer": {"tasks_per_outer_step": TASKS},
            **changes,
        }
    )


def begin(parsed: recipes.Recipe, optimizer: Optimizer, phi: Any) -> Group:
    (group,) = draw_trajectory(parsed, optimizer, Generators.seeded(5, torch.device("cpu"))).groups
    group = estimators.build(parsed).begin(group, optimizer, phi, torch.Generator().manual_seed(1))
    group.teacher = Teacher.of(group.state.coordinates, RATE)
    return group


@pytest.mark.parametrize(
    "gradient", [{}, {"second_order": False}, {"estimator": "pes", "pairs": 2}, {"estimator": "es", "sigma": 0.5}]
)
def test_the_distance_is_from_torchs_adam(gradient: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two windows, in both layouts of inner loops."""
    large_steps = {"kind": "rnnprop", "hidden_size": 4, "layers": 1, "output_scale": 3.0}
    parsed = recipe(gradient=gradient, unroll={"steps": STEPS, "truncation": 2}, architecture=large_steps)
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    group = begin(parsed, optimizer, phi)
    assert group.teacher is not None
    weights = torch.nn.Parameter(torch.zeros_like(group.theta))
    adam = torch.optim.Adam([weights], lr=RATE)
    expected: list[torch.Tensor] = []
    distances: list[torch.Tensor] = []
    see, distance = Teacher.see, Teacher.distance

    def seeing(teacher: Teacher, observations: Observations, updates: Updates) -> None:
        see(teacher, observations, updates)
        before = weights.detach().clone()
        weights.grad = observations.gradients.detach().view_as(weights).clone()
        adam.step()
        difference = updates.detach().view_as(weights) - (weights.detach() - before)
        expected.append((difference / RATE).square().mean(dim=1))

    def measuring(teacher: Teacher, inner_loops: int) -> torch.Tensor:
        found = distance(teacher, inner_loops)
        distances.append(found.detach())
        return found

    monkeypatch.setattr(Teacher, "see", seeing)
    monkeypatch.setattr(Teacher, "distance", measuring)
    for first in (0, 2):
        if first and parsed.gradient.estimator == "es":  # all inner loops go on from that of φ, which is the last
            for name in ("exp_avg", "exp_avg_sq"):
                each = adam.state[weights][name].view(-1, TASKS, 2)
                each.copy_(each[-1:].clone())
        window = Window(first, 2, STEPS, imitation=1.0)
        estimators.build(parsed).estimate(optimizer, phi, group, window, torch.Generator().manual_seed(2))
    torch.testing.assert_close(distances[0], torch.stack(expected[:2]).mean(dim=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distances[1], torch.stack(expected[2:]).mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_distance_adds_its_gradient_times_the_weight(second_order: bool) -> None:
    """The meta-gradient is linear in λ, and its slope is the distance's own gradient, by hand."""
    parsed = recipe(
        architecture={"kind": "lstm", "hidden_size": 4, "layers": 1},
        unroll={"steps": 1},
        gradient={"second_order": second_order},
    )
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    found = []
    for weight in (0.0, 3.0):
        group, generator = begin(parsed, optimizer, phi), torch.Generator().manual_seed(2)
        found.append(estimators.build(parsed).estimate(optimizer, phi, group, Window(0, 1, 1, weight), generator))
    assert found[0].meta_loss == found[1].meta_loss

    group = begin(parsed, optimizer, phi)
    leaves = {name: weight.clone().requires_grad_() for name, weight in phi.items()}
    theta = group.theta.requires_grad_()
    (gradients,) = torch.autograd.grad(group.losses(theta, {}).sum(), theta)
    seen = Observations(gradients.flatten(), torch.zeros(1))
    updates, _ = optimizer.step(leaves, seen, group.state)
    adams = -RATE * gradients.flatten().sign()  # its first step
    distance = ((updates - adams) / RATE).square().mean()
    for name, expected in zip(leaves, torch.autograd.grad(distance, list(leaves.values())), strict=True):
        difference = (found[1].gradients[name] - found[0].gradients[name]) / 3
        torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-4)


def test_the_weight_falls_to_nothing() -> None:
    imitation = recipe(imitation={"weight": 2.0, "outer_steps": 4}).imitation
    assert imitation is not None
    assert [imitation.weight_at(step) for step in range(1, 7)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("gradient", [{}, {"estimator": "es", "pairs": 8}])
def test_the_learner_comes_to_do_what_adam_does(gradient: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    distances: list[float] = []
    distance = Teacher.distance

    def measuring(teacher: Teacher, inner_loops: int) -> torch.Tensor:
        found = distance(teacher, inner_loops)
        distances.append(found.mean().item())
        return found

    monkeypatch.setattr(Teacher, "distance", measuring)
    parsed = recipe(
        gradient=gradient,
        imitation={"weight": 1e4, "learning_rate": RATE, "outer_steps": 10_000},
        meta_optimizer={"kind": "adam", "learning_rate": 0.02, "outer_steps": 60, "tasks_per_outer_step": 8},
        checkpoints={"every": 60},
    )
    list(OuterLoop(parsed))
    assert len(distances) == 60
    assert sum(distances[-5:]) < 0.3 * sum(distances[:5])
