"""The recurrent optimizers' kernel in meta-training: what it computes, its derivative by φ, and when it is chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server import optimizers
from optserve_server.optimizers import HiddenState, Observations, Optimizer
from optserve_server.optimizers.steppers import FusedStepper, ModuleStepper, Stepper, stepper

STEPS = 19  # two segments of eight, and a part of one

ARCHITECTURES = {
    "lstm": {"kind": "lstm"},
    "lstm-identity": {"kind": "lstm", "preprocessing": "identity", "layers": 1, "hidden_size": 4},
    "lstm-narrow": {"kind": "lstm", "layers": 3, "hidden_size": 1},
    "lstm-odd": {"kind": "lstm", "layers": 2, "hidden_size": 7, "output_scale": 3.0},
    "rnnprop": {"kind": "rnnprop"},
    "rnnprop-one-layer": {"kind": "rnnprop", "layers": 1, "hidden_size": 16},
    "rnnprop-odd": {"kind": "rnnprop", "layers": 3, "hidden_size": 5, "beta": 0.5, "output_scale": 2.0},
}
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
COORDINATES = pytest.mark.parametrize("n", [1, 64, 150])


def build(name: str) -> tuple[Optimizer, dict[str, Tensor]]:
    optimizer = optimizers.build(ARCHITECTURES[name])
    generator = torch.Generator().manual_seed(1)
    phi = {key: 1.5 * weight for key, weight in optimizer.initial_phi(generator).items()}
    return optimizer, {key: weight.requires_grad_() for key, weight in phi.items()}


def start(optimizer: Optimizer, n: int) -> HiddenState:
    """As after some steps; the second moments, where there are some, positive."""
    coordinates = torch.randn(len(optimizer.features), n, generator=torch.Generator().manual_seed(2))
    coordinates[:2] = coordinates[:2].abs()
    return HiddenState(coordinates, {})


def observe(n: int) -> list[Observations]:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.empty(STEPS, n).uniform_(-16, 4, generator=generator).exp()
    gradients = sizes * torch.randn(STEPS, n, generator=generator)
    return [Observations(row, torch.tensor([5.0 + step])) for step, row in enumerate(gradients)]


def follow(taken: Stepper, observations: list[Observations]) -> tuple[Tensor, HiddenState]:
    for observed in observations:
        taken.step(observed)
    return taken.updates(), taken.state


def doubled(observed: Observations) -> Observations:
    return Observations(observed.gradients.double(), observed.clock.double())


def meta_loss(updates: Tensor) -> Tensor:
    """Any function of all updates."""
    weights = torch.randn(updates.shape, generator=torch.Generator().manual_seed(4)).to(updates.dtype)
    return (weights * updates).sum() + updates[-1].square().sum()


@EVERY
@COORDINATES
def test_the_kernel_agrees_with_the_module_in_float64(name: str, n: int) -> None:
    optimizer, phi = build(name)
    state, observations = start(optimizer, n), observe(n)
    fused = FusedStepper(optimizer, phi, state, STEPS)
    updates, end = follow(fused, observations)

    exact_phi = {key: weight.detach().double().requires_grad_() for key, weight in phi.items()}
    exact = ModuleStepper(optimizer.step, exact_phi, HiddenState(state.coordinates.double(), {}))
    expected, expected_end = follow(exact, [doubled(observed) for observed in observations])
    torch.testing.assert_close(updates.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end.coordinates.double(), expected_end.coordinates, rtol=1e-4, atol=1e-5)

    gradients = torch.autograd.grad(meta_loss(updates), list(phi.values()))
    expected_gradients = torch.autograd.grad(meta_loss(expected), list(exact_phi.values()))
    for key, gradient, exactly in zip(phi, gradients, expected_gradients, strict=True):
        error = (gradient.double() - exactly).abs().max() / exactly.abs().max()
        assert error < 1e-4, f"{key}: {error}"


@EVERY
def test_a_window_in_parts_is_the_window(name: str) -> None:
    """Bit for bit: h_t is carried over, and each coordinate stands for itself."""
    optimizer, phi = build(name)
    state, observations = start(optimizer, 150), observe(150)
    whole, end = follow(FusedStepper(optimizer, phi, state, STEPS), observations)
    first, middle = follow(FusedStepper(optimizer, phi, state, 7), observations[:7])
    second, parted_end = follow(FusedStepper(optimizer, phi, middle, 12), observations[7:])
    assert torch.equal(torch.cat((first, second)), whole)
    assert torch.equal(parted_end.coordinates, end.coordinates)


def test_the_derivative_may_be_taken_twice() -> None:
    optimizer, phi = build("lstm-odd")
    updates, _ = follow(FusedStepper(optimizer, phi, start(optimizer, 70), STEPS), observe(70))
    leaves = list(phi.values())
    once = torch.autograd.grad(meta_loss(updates), leaves, retain_graph=True)
    twice = torch.autograd.grad(meta_loss(updates), leaves)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["lstm", "rnnprop-odd"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    n = 70 * 64 + 3  # more blocks than chunks, and enough of them for three cores
    optimizer, phi = build(name)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            updates, end = follow(FusedStepper(optimizer, phi, start(optimizer, n), STEPS), observe(n))
            gradients = torch.autograd.grad(meta_loss(updates), list(phi.values()))
        results.append([updates.detach(), end.coordinates, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("architecture", "dtype", "second_order", "differentiable_state", "expected"),
    [
        ({"kind": "lstm"}, torch.float32, False, False, FusedStepper),
        ({"kind": "rnnprop"}, torch.float32, False, False, FusedStepper),
        ({"kind": "lstm"}, torch.float64, False, False, ModuleStepper),
        ({"kind": "lstm"}, torch.float32, True, False, ModuleStepper),
        ({"kind": "lstm"}, torch.float32, False, True, ModuleStepper),
        ({"kind": "adam"}, torch.float32, False, False, ModuleStepper),
    ],
)
def test_the_kernel_is_chosen_where_it_can_be(
    architecture: dict[str, Any], dtype: torch.dtype, second_order: bool, differentiable_state: bool, expected: type
) -> None:
    optimizer = optimizers.build(architecture)
    phi = {name: weight.to(dtype) for name, weight in optimizer.initial_phi(torch.Generator()).items()}
    coordinates = torch.zeros(len(optimizer.features), 3, dtype=dtype, requires_grad=differentiable_state)
    taken = stepper(optimizer, phi, HiddenState(coordinates, {}), 1, second_order=second_order)
    assert type(taken) is expected


def test_phi_of_each_task_goes_through_the_module() -> None:
    """A batch of φ, as evolution strategies have it."""
    optimizer, phi = build("lstm-odd")
    batch = {name: weight.detach().expand(2, *weight.shape) for name, weight in phi.items()}
    state = HiddenState(torch.zeros(2, len(optimizer.features), 3), {})
    assert type(stepper(optimizer, batch, state, 1, second_order=False)) is ModuleStepper
