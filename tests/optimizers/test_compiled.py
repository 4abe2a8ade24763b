"""An optimizer's step compiled as on a GPU: one graph, the same numbers, the same meta-gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server import optimizers
from optserve_server.metatraining.particles import step_each
from optserve_server.optimizers import LEARNED, HiddenState, Observations, Optimizer, Phi, initial_state
from optserve_server.optimizers.compiled import compiled
from optserve_server.optimizers.steppers import ModuleStepper, Step

SHAPES, TASKS, STEPS = ((3, 2), (2,)), 2, 3
N = 8

# Dynamo looks at `.grad` of every tensor, and hides what PyTorch says to that only from people.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


def build(kind: str) -> tuple[Optimizer, dict[str, Tensor]]:
    optimizer = optimizers.build({"kind": kind})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    return optimizer, {name: weight + 0.1 * torch.randn(weight.shape, generator=noise) for name, weight in phi.items()}


def observe(step: int) -> Observations:
    generator = torch.Generator().manual_seed(step)
    gradients, theta = torch.randn(2, TASKS, N, generator=generator).unbind()
    loss = torch.rand(TASKS, generator=generator)
    clock = torch.tensor([float(step)], dtype=torch.float64)
    return Observations(gradients, clock, theta, loss, torch.full_like(loss, 10.0), SHAPES)


def follow(step: Step, phi: Phi, state: HiddenState) -> tuple[Tensor, HiddenState, tuple[Tensor, ...]]:
    """All updates of a few steps, the last state, and the meta-gradient of a function of both, gone through twice."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in phi.items()}
    taken = ModuleStepper(step, leaves, state)
    for number in range(STEPS):
        taken.step(observe(number))
    updates = taken.updates()
    meta_loss = updates.square().sum() + taken.state.coordinates.sin().sum()
    torch.autograd.grad(meta_loss, list(leaves.values()), retain_graph=True)
    return updates.detach(), taken.state, torch.autograd.grad(meta_loss, list(leaves.values()))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def check(step: Step, phi: Phi, state: HiddenState) -> None:
    updates, end, gradients = follow(step, phi, state)
    found_updates, found_end, found_gradients = follow(compiled(step, backend="aot_eager"), phi, state)
    close(found_updates, updates)
    close(found_end.coordinates, end.coordinates)
    close(found_end.arrays, end.arrays)
    close(found_gradients, gradients)


@pytest.mark.parametrize("kind", LEARNED)
def test_a_step_is_one_graph(kind: str) -> None:
    optimizer, phi = build(kind)
    check(optimizer.step, phi, initial_state(optimizer, SHAPES, (TASKS,)))


@pytest.mark.parametrize("kind", LEARNED)
@torch.no_grad()
def test_a_step_of_particles_is_one_graph(kind: str) -> None:
    """Each with a φ of its own, as evolution strategies have them, which want no gradient."""
    optimizer, phi = build(kind)
    of_each = {name: torch.stack([weight, 1.1 * weight]) for name, weight in phi.items()}
    state = initial_state(optimizer, SHAPES, (TASKS,))
    step = step_each(optimizer.step)
    updates, end = step(of_each, observe(1), state)
    found_updates, found_end = compiled(step, backend="aot_eager")(of_each, observe(1), state)
    close((found_updates, found_end.coordinates, found_end.arrays), (updates, end.coordinates, end.arrays))
