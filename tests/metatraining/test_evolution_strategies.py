"""ES, PES and NRES on a problem whose answer is known, and against backpropagation.

`pytest tests/metatraining/test_evolution_strategies.py -s` prints the figures.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import Generators, draw_trajectory
from optserve_server.metatraining.estimators import Window
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import LEARNED, Coordinatewise, HiddenState, Observations, Optimizer, Phi
from optserve_server.optimizers.steppers import Stepper

EVERY = pytest.mark.parametrize("kind", ["es", "pes", "nres"])
WINDOW, WINDOWS = 5, 4


@dataclass(frozen=True)
class Drift(Coordinatewise):
    """g_t = φ: so that θ_t = θ_0 + t φ."""

    kind: ClassVar[str] = "drift"
    learned: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    features: ClassVar[tuple[str, ...]] = ("nothing",)

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"drift": torch.tensor([0.03])}

    def step_coordinates(self, phi: Phi, observations: Observations, state: Tensor) -> tuple[Tensor, Tensor]:
        return phi["drift"].expand_as(observations.gradients), state


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 2, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 1}}],
            "unroll": {"steps": WINDOW * WINDOWS, "truncation": WINDOW},
            "meta_optimizer": {"tasks_per_outer_step": 1},
            **changes,
        }
    )


def first_group(parsed: recipes.Recipe, optimizer: Optimizer, seed: int = 0) -> Group:
    (group,) = draw_trajectory(parsed, optimizer, Generators.seeded(seed, torch.device("cpu"))).groups
    return group


def windows(
    parsed: recipes.Recipe, optimizer: Optimizer, phi: dict[str, Tensor], generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """The meta-gradients of all windows of the first trajectory, φ standing still."""
    estimator = estimators.build(parsed)
    group = estimator.begin(first_group(parsed, optimizer), optimizer, phi, generator)
    length = parsed.unroll.window
    return [
        estimator.estimate(optimizer, phi, group, Window(first, length, parsed.unroll.longest), generator).gradients
        for first in range(0, parsed.unroll.longest, length)
    ]


@EVERY
def test_on_a_problem_with_a_known_answer(kind: str) -> None:
    """f = (Wθ − y)² and θ_t = θ_0 + tφ: d f(θ_t)/dφ is 2 t W (Wθ_t − y); truncated ES sees the window's steps of t."""
    parsed, optimizer = recipe(gradient={"estimator": kind, "sigma": 0.1, "pairs": 1000}), Drift()
    phi = optimizer.initial_phi(torch.Generator())
    generator = torch.Generator().manual_seed(1)
    found = torch.tensor([[w["drift"].item() for w in windows(parsed, optimizer, phi, generator)] for _ in range(40)])
    mean, error = found.mean(dim=0), found.std(dim=0) / len(found) ** 0.5

    group = first_group(parsed, optimizer)
    w, y, theta = group.task_data["W"].squeeze(), group.task_data["y"].squeeze(), group.theta.squeeze()
    t = torch.arange(1, WINDOWS + 1) * WINDOW
    per_step = 2 * w * (w * (theta + t * phi["drift"]) - y)
    print(f"\n{kind}: {mean.tolist()} ± {error.tolist()}, known {(t * per_step).tolist()}")
    if kind == "es":
        assert ((mean - WINDOW * per_step).abs() < 4 * error).all()
        assert ((mean - t * per_step).abs()[1:] > 20 * error[1:]).all()  # so it is biased from the second window on
    else:
        assert ((mean - t * per_step).abs() < 4 * error).all()


@EVERY
def test_against_backpropagation_through_the_whole_trajectory(kind: str) -> None:
    """An LSTM's ∇_φ Σ_w L_w: PES and NRES find it in windows, ES in one window only."""
    task = [{"family": "quadratic", "parameters": {"dimension": 2}}]
    truncation = None if kind == "es" else 2
    settings = {"estimator": kind, "sigma": 0.003, "pairs": 10_000}
    parsed = recipe(tasks=task, unroll={"steps": 4, "truncation": truncation}, gradient=settings)
    whole = recipe(tasks=task, unroll={"steps": 4}, meta_loss={"kind": "sum"})
    if kind == "es":
        parsed = parsed.model_copy(update={"meta_loss": whole.meta_loss})
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    found = windows(parsed, optimizer, phi, torch.Generator().manual_seed(1))
    total = torch.cat([sum(w[name] for w in found).flatten() for name in phi])  # type: ignore[union-attr]

    leaves = {name: weight.clone().requires_grad_() for name, weight in phi.items()}
    expected = torch.cat([gradient.flatten() for gradient in whole_gradient(parsed, optimizer, leaves)])
    error = ((total - expected).norm() / expected.norm()).item()
    print(f"\n{kind}: relative error {error:.3f}")
    assert error < 0.1  # of 46 weights and 10,000 pairs: √(46 / 10,000) is 0.07


def whole_gradient(parsed: recipes.Recipe, optimizer: Optimizer, phi: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """∇_φ of what the estimator sums up, by autograd through one loop written out."""
    group = first_group(parsed, optimizer)
    w, y, theta, state = group.task_data["W"], group.task_data["y"], group.theta, group.state
    total = torch.zeros(())
    for step in range(4):
        residual = torch.einsum("tij,tj->ti", w, theta) - y
        gradients = 2 * torch.einsum("tij,ti->tj", w, residual)
        clock = torch.tensor([float(step)])
        updates, state = optimizer.step(phi, Observations(gradients.flatten(), clock), state)
        theta = theta + updates.view_as(theta)
        if parsed.meta_loss.kind == "sum" or step in (1, 3):
            total = total + (torch.einsum("tij,tj->ti", w, theta) - y).square().sum()
    return torch.autograd.grad(total, list(phi.values()))


@EVERY
@pytest.mark.parametrize("architecture", LEARNED)
def test_a_particle_is_the_inner_loop_under_its_phi(kind: str, architecture: str) -> None:
    """Each particle of each task, one window after another, against plain steps of that task alone."""
    task = {"family": "digits-mlp", "parameters": {"hidden_sizes": [3], "batch_size": 4}}
    parsed = recipe(
        architecture={"kind": architecture},
        tasks=[task],
        unroll={"steps": 4, "truncation": 2},
        gradient={"estimator": kind, "pairs": 2},
        meta_optimizer={"tasks_per_outer_step": 3},
        augmentation={"coordinate_scaling": 1.0},
    )
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    estimator = estimators.build(parsed)
    group = estimator.begin(first_group(parsed, optimizer), optimizer, phi, torch.Generator().manual_seed(1))
    assert isinstance(group, ParticleGroup)
    seen: list[dict[str, Tensor]] = []
    original = group.stepper

    def watched(optimizer: Optimizer, phi: Phi, steps: int, *, second_order: bool) -> Stepper:
        taken = original(optimizer, phi, steps, second_order=second_order)
        step = taken.step

        def watched_step(observations: Observations) -> Tensor:
            state, updates = taken.state, step(observations)
            for member in (0, 4, len(updates) - 1):
                alone = {name: weight[member] for name, weight in phi.items()}
                arrays = {name: array[member] for name, array in state.arrays.items()}
                told = Observations(
                    observations.gradients[member],
                    observations.clock,
                    group.theta[member],
                    observations.loss[member],  # type: ignore[index]
                    observations.horizon[member],  # type: ignore[index]
                    observations.shapes,
                )
                expected, _ = optimizer.step(alone, told, HiddenState(state.coordinates[member], arrays))
                torch.testing.assert_close(updates[member], expected, rtol=1e-4, atol=1e-6)
            seen.append(dict(phi))
            return updates

        taken.step = watched_step  # type: ignore[method-assign]
        return taken

    group.stepper = watched  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(2)
    for first in (0, 2):
        estimator.estimate(optimizer, phi, group, Window(first, 2, 4), generator)
    assert len(seen) == 4
    same = all(torch.equal(seen[0][name], seen[2][name]) for name in phi)
    assert same == (kind == "nres")
    pairs = {name: weight.view(-1, 3, *weight.shape[1:]) for name, weight in seen[0].items()}
    for name, weight in phi.items():
        middle = (pairs[name][:2] + pairs[name][2:4]) / 2
        torch.testing.assert_close(middle, weight.expand_as(middle))


def test_es_goes_on_from_where_phi_itself_has_led() -> None:
    parsed = recipe(gradient={"estimator": "es", "pairs": 3}, tasks=[{"family": "quadratic"}])
    plain = recipe(tasks=[{"family": "quadratic"}])
    optimizer = parsed.optimizer()
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    ends = []
    for one in (parsed, plain):
        estimator, generator = estimators.build(one), torch.Generator().manual_seed(1)
        group = estimator.begin(first_group(one, optimizer), optimizer, phi, generator)
        for first in (0, WINDOW):
            found = estimator.estimate(optimizer, phi, group, Window(first, WINDOW, WINDOW * WINDOWS), generator)
        ends.append((group.theta[-1], found.meta_loss, found.loss))
    torch.testing.assert_close(ends[0], ends[1])


@EVERY
def test_a_particle_that_diverges_counts_the_ceiling(kind: str) -> None:
    parsed = recipe(
        gradient={"estimator": kind, "pairs": 2},
        meta_loss={"ceiling": 7.0},
        meta_optimizer={"tasks_per_outer_step": 3},
    )
    optimizer, generator = parsed.optimizer(), torch.Generator().manual_seed(1)
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    estimator = estimators.build(parsed)
    group = estimator.begin(first_group(parsed, optimizer), optimizer, phi, generator)
    each = group.theta.view(-1, 3)
    each[:, 1] = float("nan")  # a task with all its particles
    each[0, 2] = float("inf")  # one particle of another; of ES, whose particles start at the last one, none
    found = estimator.estimate(optimizer, phi, group, Window(0, WINDOW, WINDOW), generator)
    assert found.non_finite.item() == (1 if kind == "es" else 2)
    assert found.lost.item() == 1
    assert found.meta_loss <= 7
    assert all(gradient.isfinite().all() for gradient in found.gradients.values())


@EVERY
def test_it_learns(kind: str) -> None:
    """The sum of ten log losses falls by ten: each loss to less than half."""
    parsed = recipe(
        tasks=[{"family": "quadratic", "parameters": {"dimension": 2}}],
        architecture={"kind": "rnnprop", "hidden_size": 4, "layers": 1},
        gradient={"estimator": kind, "sigma": 0.05, "pairs": 4},
        meta_loss={"kind": "log"},
        unroll={"steps": 10, "truncation": 5},
        meta_optimizer={"kind": "adam", "learning_rate": 0.02, "outer_steps": 80, "tasks_per_outer_step": 16},
        checkpoints={"every": 80},
    )
    progress = list(OuterLoop(parsed))
    assert sum(p.meta_loss for p in progress[-10:]) < sum(p.meta_loss for p in progress[:10]) - 10
