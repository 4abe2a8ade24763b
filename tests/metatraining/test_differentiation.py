"""f(θ_t) and ∇_t are the same bits, traced or not."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from optserve_server import tasks
from optserve_server.metatraining import differentiation, perceptrons
from optserve_server.metatraining.differentiation import losses_and_gradients
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import HiddenState
from optserve_server.tasks.base import Batch
from optserve_server.tasks.quadratic import Quadratic

TASKS = 3
FAMILIES = [
    "quadratic",
    "noisy-quadratic",
    "classic-2d",
    "logistic-regression",
    "matrix-factorisation",
    "digits-mlp",
    "tabular-mlp",
    "clusters-mlp",
    "teacher-mlp",
    "digits-conv",
    "digits-autoencoder",
    "markov-rnn",
    "synthetic-mlp",
    "patterns-conv",
    "echo-rnn",
    "varied-quadratic",
    "curved-valley",
]


def draw(family: Any, generator: torch.Generator, *, scaled: bool = False) -> tuple[Group, Batch]:
    theta, data = family.initial(generator, TASKS), family.sample(generator, TASKS, "train")
    scales = torch.rand(theta.shape, generator=generator) + 0.5 if scaled else None
    group = Group(0, family, data, theta, HiddenState(torch.zeros(1, 1), {}), scales)
    return group, group.draw_batch(generator)


def plainly(group: Group, batch: Batch) -> tuple[Tensor, Tensor]:
    theta = group.theta.clone().requires_grad_()
    losses = group.losses(theta, batch)
    (gradients,) = torch.autograd.grad(losses.sum(), theta)
    return losses.detach(), gradients


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second evaluation is traced, of perceptrons too, which have a kernel."""
    monkeypatch.setattr(perceptrons, "perceptron_of", lambda _group, _batch: None)
    monkeypatch.setattr(differentiation, "TRACED_AFTER", 2)
    monkeypatch.setattr(differentiation, "_asked", type(differentiation._asked)())
    monkeypatch.setattr(differentiation, "_traced", {})


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_tracing_changes_no_bit(name: str, scaled: bool) -> None:
    generator, family = torch.Generator().manual_seed(0), tasks.build(name, {})
    for number in range(4):
        group, batch = draw(family, generator, scaled=scaled)
        found, expected = losses_and_gradients(group, batch), plainly(group, batch)
        assert len(differentiation._traced) == (number >= 1)
        assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(found, expected, strict=True))


def test_families_and_shapes_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    for family in (Quadratic(dimension=2), Quadratic(dimension=3), tasks.build("classic-2d", {})):
        for _ in range(3):
            group, batch = draw(family, generator)
            assert torch.equal(losses_and_gradients(group, batch)[1], plainly(group, batch)[1])
    assert len(differentiation._traced) == 3


def test_a_family_that_is_no_key_is_never_traced() -> None:
    @dataclass(frozen=True)
    class Shifted(Quadratic):
        name: ClassVar[str] = "shifted"
        shifts: Any = None

    generator = torch.Generator().manual_seed(0)
    group, batch = draw(Shifted(dimension=2, shifts=[1.0]), generator)
    for _ in range(3):
        other = copy.copy(group)
        assert torch.equal(losses_and_gradients(other, batch)[1], plainly(group, batch)[1])
    assert not differentiation._traced
