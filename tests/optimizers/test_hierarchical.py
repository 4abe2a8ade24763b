"""`hierarchical` against its equations, in NumPy; what it is before meta-training; and what keeps it going."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.optimizers.recomputed_hierarchical import SHAPES, Recomputed
from torch import Tensor

from optserve_server import optimizers
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Shapes, initial_state, weights
from optserve_server.optimizers.readings import Descent, Losses

N = 19


def build(noise: float = 0.0, dtype: torch.dtype = torch.float32, **sizes: int) -> tuple[Optimizer, dict[str, Tensor]]:
    """Untrained, or with noise on every weight."""
    optimizer = optimizers.build({"kind": "hierarchical", **sizes})
    generator = torch.Generator().manual_seed(3)
    phi = optimizer.initial_phi(generator)
    return optimizer, {
        key: (value + noise * torch.randn(value.shape, generator=generator)).to(dtype) for key, value in phi.items()
    }


def observed(
    gradients: Tensor, loss: float | Tensor | None = None, horizon: float | None = None, shapes: Shapes = SHAPES
) -> Observations:
    def scalar(value: float | Tensor | None) -> Tensor | None:
        return None if value is None else torch.as_tensor(value, dtype=gradients.dtype)

    return Observations(gradients, torch.zeros(1), None, scalar(loss), scalar(horizon), shapes)


# --- the equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [None, 12.0, 60.0])
def test_the_equations_recomputed_with_numpy(horizon: float | None) -> None:
    """80 steps: a spike of the gradient, a loss that rises and falls and is left out, the horizon passed."""
    optimizer, phi = build(noise=0.3, dtype=torch.float64)
    recomputed = Recomputed(phi)
    state = initial_state(optimizer, SHAPES, like=torch.empty(0, dtype=torch.float64))
    generator = np.random.default_rng(0)
    cautions = []
    for step in range(80):
        gradients = generator.normal(size=N) * 10.0 ** generator.uniform(-3, 1, N) + 0.1
        gradients *= 1e3 if step == 7 else 1.0
        noise = generator.normal() / 9
        loss = None if step in (0, 1, 20) else 3 * math.exp(-step / 9) + 9 * (12 < step < 60) + noise
        expected = recomputed.step(gradients, loss, horizon)
        updates, state = optimizer.step(phi, observed(torch.from_numpy(gradients), loss, horizon), state)
        np.testing.assert_allclose(updates.numpy(), expected, rtol=1e-9)
        cautions.append(recomputed.caution)
    assert min(cautions) < -0.5


def test_meta_gradients_agree_with_finite_differences() -> None:
    """In float64, back through gradients and losses that depend on φ themselves."""
    optimizer, phi = build(noise=0.1, dtype=torch.float64, hidden_size=2, scheduler_size=2)
    shapes = ((2, 2), (1,))

    def final_loss(*values: Tensor) -> Tensor:
        named = dict(zip(phi, values, strict=True))
        theta = torch.linspace(-2, 2, 5, dtype=torch.float64)
        state = initial_state(optimizer, shapes, like=theta)
        for _ in range(4):
            loss, gradients = (theta**4).sum() / 4 + 0.1 * theta.sum(), theta**3 + 0.1
            updates, state = optimizer.step(named, observed(gradients, loss, 4.0, shapes), state)
            theta = theta + updates
        return (theta**4).sum()

    leaves = [value.clone().requires_grad_() for value in phi.values()]
    assert torch.autograd.gradcheck(final_loss, leaves, eps=1e-6, atol=1e-7)


# --- what it is before meta-training ----------------------------------------------------------------------------------


def train(
    loss_of: Callable[[Tensor], Tensor],
    theta: Tensor,
    steps: int,
    shapes: Shapes,
    *,
    loss: bool = True,
    horizon: float | None = None,
    units: float = 1.0,
    gradient_units: float = 1.0,
) -> tuple[list[float], Tensor]:
    """The losses of `steps` steps from θ, untrained, and θ at the end; the loss is seen in other units.

    So are the gradients, and besides in units that the loss is not in.
    """
    optimizer, phi = build()
    state = initial_state(optimizer, shapes)
    losses = []
    for _ in range(steps):
        theta.requires_grad_()
        found = units * loss_of(theta)
        (gradients,) = torch.autograd.grad(found, theta)
        seen = observed(gradient_units * gradients, found if loss else None, horizon, shapes)
        updates, state = optimizer.step(phi, seen, state)
        theta = theta.detach() + updates.detach()
        losses.append(found.item() / units)
    return losses, theta


@pytest.mark.parametrize("horizon", [None, 50.0])
def test_untrained_it_is_adam(horizon: float | None) -> None:
    """Of a rate that the first loss gives, that rises over some ten steps, and falls to 0 at the horizon."""
    optimizer, phi = build()
    theirs = torch.nn.Parameter(torch.linspace(-1, 2, N))
    ours, state = theirs.detach().clone(), initial_state(optimizer, SHAPES)
    adam = torch.optim.Adam([theirs], lr=1.0, eps=0.0)
    steepest = 0.0
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        gradients = ours.sin() + 0.3 * torch.randn(N, generator=generator)
        theirs.grad = gradients.clone()
        moved = theirs.detach().clone()
        adam.param_groups[0]["lr"] = 1.0
        adam.step()
        direction = moved - theirs.detach()
        steepest = max(steepest, (gradients * direction).abs().sum().item())
        remaining = 1.0 if horizon is None else max(0.01, 1 - step / horizon)
        rate = 0.01 * math.e**4 * 7.0 / steepest * remaining * math.exp(-3 * math.exp(-step / 4))
        theirs.data = moved - rate * direction
        updates, state = optimizer.step(phi, observed(gradients, 7.0, horizon), state)
        ours = ours + updates
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def valley(theta: Tensor) -> Tensor:
    return 100 * (theta[1] - theta[0] ** 2) ** 2 + (1 - theta[0]) ** 2


def network(sizes: list[int], spread: float) -> tuple[Callable[[Tensor], Tensor], Tensor, Shapes]:
    """A tanh network that learns to give its inputs back, its θ_0, and its shapes."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 3, generator=generator) @ torch.randn(3, sizes[0], generator=generator)
    shapes = tuple(shape for pair in pairwise(sizes) for shape in (pair, pair[1:]))
    theta = torch.cat(
        [
            torch.randn(math.prod(shape), generator=generator) * spread / shape[0] ** 0.5 * (len(shape) == 2)
            for shape in shapes
        ]
    )

    def loss(theta: Tensor) -> Tensor:
        layer, parts = data, theta.split([math.prod(shape) for shape in shapes])
        for number, (weight, bias) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            layer = layer @ weight.view(-1, len(bias)) + bias
            layer = layer if number == len(sizes) - 2 else torch.tanh(layer)
        return (layer - data).square().mean()

    return loss, theta, shapes


@pytest.mark.parametrize("units", [1e-9, 1e6])
def test_the_units_of_loss_and_parameters_do_not_matter(units: float) -> None:
    expected, _ = train(valley, torch.tensor([-1.2, 1.0]), 50, ((2,),), horizon=50)
    seen, _ = train(valley, torch.tensor([-1.2, 1.0]), 50, ((2,),), horizon=50, units=units)
    assert seen == pytest.approx(expected, rel=1e-3)
    scale = units**-0.125
    scaled, _ = train(lambda theta: valley(theta / scale), torch.tensor([-1.2, 1.0]) * scale, 50, ((2,),), horizon=50)
    assert scaled == pytest.approx(expected, rel=1e-3)


def test_very_large_parameters_are_moved_after_some_doublings() -> None:
    """Their rate is above what is safe at first; it is found while the loss does what the gradients let expect."""
    scale = 1e4
    scaled, _ = train(lambda theta: valley(theta / scale), torch.tensor([-1.2, 1.0]) * scale, 100, ((2,),), horizon=100)
    assert scaled[-1] < 0.2 * scaled[0]


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_gradients_in_other_units_than_the_loss_do_no_harm(factor: float) -> None:
    """Too small by 10⁸ they ask for a rate that much too high, and would never be believed."""
    loss, theta, shapes = network([10, 16, 10], 1.0)
    losses, _ = train(loss, theta, 100, shapes, horizon=100, gradient_units=factor)
    assert max(losses) < 1.5 * losses[0]
    assert losses[-1] <= losses[0]


@pytest.mark.parametrize(
    ("sizes", "spread", "share"),
    [([10, 16, 16, 16, 16, 16, 16, 10], 1.0, 0.5), ([10] + [16] * 8 + [10], 0.5, 0.8), ([10, 16, 3, 16, 10], 1.0, 0.3)],
    ids=["deep", "vanishing", "autoencoder"],
)
def test_untrained_it_stands_still_nowhere(sizes: list[int], spread: float, share: float) -> None:
    """Nor where gradients all but vanish at θ_0, so that loss and slope there ask for far too high a rate."""
    loss, theta, shapes = network(sizes, spread)
    losses, _ = train(loss, theta, 150, shapes, horizon=150)
    assert losses[-1] < share * losses[0]


@pytest.mark.parametrize("horizon", [100.0, None])
def test_a_curved_valley_is_reached_and_followed(horizon: float | None) -> None:
    losses, _ = train(valley, torch.tensor([-1.2, -1.2]), 100, ((2,),), horizon=horizon)
    assert losses[-1] < 1e-3 * losses[0]


def test_a_loss_without_a_zero_gets_its_scale_from_its_fall() -> None:
    """First all but 0, then ever lower: the loss of a likelihood, say."""
    losses, _ = train(lambda theta: (theta - 1).square().sum() - 2.0001, torch.zeros(2), 100, ((2,),), horizon=100)
    assert losses[-1] == pytest.approx(-2.0001, abs=0.01)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 10, 29])
def test_meta_trained_it_descends_from_its_first_step_however_near_the_horizon(horizon: int) -> None:
    """It was meta-trained with 30 steps and more."""
    weights_file = Path(__file__).parents[2] / "recipes" / "hierarchical.safetensors"
    optimizer, phi, _ = weights.decode(weights_file.read_bytes())
    for size in (1, 10, 1510):
        theta, state, losses = torch.ones(size), initial_state(optimizer, ((size,),)), []
        for _ in range(horizon + 1):
            losses.append(theta.square().sum())
            updates, state = optimizer.step(phi, observed(2 * theta, losses[-1], float(horizon), ((size,),)), state)
            theta = theta + updates
        assert max(losses) == losses[0]


def test_after_the_horizon_it_neither_stops_nor_runs_away() -> None:
    losses, theta = train(valley, torch.tensor([-1.2, 1.0]), 400, ((2,),), horizon=100)
    assert losses[-1] <= losses[100]
    assert theta.isfinite().all()


# --- guards -----------------------------------------------------------------------------------------------------------


def rows(state: HiddenState, name: str, kind: type[Losses | Descent]) -> dict[str, float]:
    return dict(zip(kind._fields, state.arrays[name].flatten().tolist(), strict=True))


def test_a_spike_in_the_gradients_is_forgotten() -> None:
    """Thirty steps after one gradient that is a million times too large the updates are of their usual size."""
    optimizer, phi = build()
    updates = []
    for spike in (1.0, 1e6):
        state = initial_state(optimizer, SHAPES)
        for step in range(40):
            gradients = torch.randn(N, generator=torch.Generator().manual_seed(step)) + 1
            updates_now, state = optimizer.step(phi, observed(gradients * (spike if step == 10 else 1), 1.0), state)
        updates.append(updates_now)
    assert rows(state, "descent", Descent)["slope"] < 50 * N
    ratio = updates[1] / updates[0]
    assert ((ratio > 0.1) & (ratio < 1.5)).all()


def test_a_loss_that_jumps_up_lowers_the_rate_and_then_is_accepted() -> None:
    optimizer, phi = build()
    state = initial_state(optimizer, SHAPES)
    factors = []
    for step in range(300):
        _, state = optimizer.step(phi, observed(torch.ones(N), 1.0 if step < 30 else 9.0, 300.0), state)
        factors.append(math.exp(state.arrays["caution"].item()))
    assert factors[29] == 1.0
    assert min(factors) == pytest.approx(math.exp(-4), rel=1e-3)
    assert factors[-1] == 1.0


@pytest.mark.parametrize("loss", [0.0, 1e-45, -3e38, math.inf])
def test_no_loss_breaks_it(loss: float) -> None:
    optimizer, phi = build(noise=0.3)
    phi = {key: value.requires_grad_() for key, value in phi.items()}
    state, total = initial_state(optimizer, SHAPES), torch.zeros(())
    for step in range(4):
        seen = torch.tensor(loss if step % 2 == 0 else 1.0, requires_grad=True)
        updates, state = optimizer.step(phi, observed(torch.ones(N), seen, 10.0), state)
        assert updates.isfinite().all()
        total = total + updates.sum()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, [*phi.values(), seen]))


def test_updates_are_bounded_whatever_is_learned() -> None:
    """Where the network, the scheduler and the losses all ask for the largest: ten times the largest rate."""
    optimizer, phi = build()
    asking = phi | {"rate.level.bias": torch.tensor([1e6]), "coordinates.2.bias": torch.full((5,), 1e6)}
    state = initial_state(optimizer, SHAPES)
    updates, _ = optimizer.step(asking, observed(torch.full((N,), 1e-9), 1e15), state)
    torch.testing.assert_close(updates, torch.full((N,), -0.01 * math.exp(5 + 5) * 10))
    state.arrays["descent"][Descent._fields.index("reach")] = 7.0
    updates, _ = optimizer.step(asking, observed(torch.full((N,), 1e-9), 1e15), state)
    torch.testing.assert_close(updates, torch.full((N,), -0.01 * math.exp(14) * 10))


def test_where_there_is_no_gradient_nothing_moves() -> None:
    optimizer, phi = build(noise=1.0)
    state = initial_state(optimizer, SHAPES)
    for _ in range(3):
        gradients = torch.ones(N)
        gradients[3:7] = 0
        updates, state = optimizer.step(phi, observed(gradients, 1.0, 10.0), state)
        assert (updates[3:7] == 0).all()
        assert (updates[:3] != 0).all()


def test_the_order_of_a_tensor_s_elements_does_not_matter() -> None:
    optimizer, phi = build(noise=0.3)
    order = torch.cat((torch.randperm(12, generator=torch.Generator().manual_seed(0)), torch.arange(12, N)))
    one, other = initial_state(optimizer, SHAPES), initial_state(optimizer, SHAPES)
    for step in range(4):
        gradients = torch.randn(N, generator=torch.Generator().manual_seed(step))
        straight, one = optimizer.step(phi, observed(gradients, 1.0, 10.0), one)
        shuffled, other = optimizer.step(phi, observed(gradients[order], 1.0, 10.0), other)
        torch.testing.assert_close(straight[order], shuffled)
