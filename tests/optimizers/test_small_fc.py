"""`small_fc` recomputed with NumPy, its factored moments, and its meta-gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optserve_server import optimizers
from optserve_server.optimizers import Observations, Shapes, factored, initial_state

SHAPES: Shapes = ((3, 5), (130,), (2, 3, 4), ())
SIZES = [15, 130, 24, 1]
DECAYS = np.array([0.9, 0.99, 0.999])


def build(dtype: torch.dtype = torch.float64, **options: float) -> tuple[optimizers.Optimizer, dict[str, Tensor]]:
    optimizer = optimizers.build({"kind": "small_fc", "step_multiplier": 0.1, "magnitude_multiplier": 0.2, **options})
    generator = torch.Generator().manual_seed(0)
    phi = optimizer.initial_phi(generator)
    return optimizer, {key: (w + 0.1 * torch.randn(w.shape, generator=generator)).to(dtype) for key, w in phi.items()}


def observed(gradients: Tensor, shapes: Shapes = SHAPES) -> Observations:
    return Observations(gradients, torch.zeros(1), shapes=shapes)


class Recomputed:
    """One tensor, in its own shape; `axes` are those along which rows and columns stand, if it is factored."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, int] | None) -> None:
        self.axes, self.t = axes, 0
        self.m, self.v, self.factored = [np.zeros(shape)] * 3, np.zeros(shape), [np.zeros(shape)] * 3

    def step(self, w: dict[str, np.ndarray], g: np.ndarray) -> np.ndarray:
        self.m = [beta * m + (1 - beta) * g for beta, m in zip(DECAYS, self.m, strict=True)]
        self.v = 0.999 * self.v + 0.001 * g**2
        self.factored = [beta * v + (1 - beta) * g**2 for beta, v in zip(DECAYS, self.factored, strict=True)]
        rows, columns, whole = zip(*(self.means(v) for v in self.factored), strict=True)
        x = [g, *self.m, np.sqrt(self.v), *(m / np.sqrt(self.v) for m in self.m), 1 / np.sqrt(self.v)]
        x += [g / np.sqrt(v) for v in whole]
        x += [m / np.sqrt(v) for m, v in zip(self.m, whole, strict=True)]
        x += [np.sqrt(v) for v in (*rows, *columns)] + [1 / np.sqrt(v) for v in (*rows, *columns)]
        x = [np.clip(one / np.sqrt(np.mean(one**2)), -10, 10) for one in x]
        scales = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]
        x += [np.full(g.shape, np.tanh(self.t / scale - 1)) for scale in scales]
        self.t += 1
        layer = np.stack([np.ravel(one) for one in x])
        for number in range(3):
            layer = w[f"layers.{number}.weight"] @ layer + w[f"layers.{number}.bias"][:, None]
            layer = layer if number == 2 else np.maximum(layer, 0)
        return -0.1 * layer[0] * np.exp(0.2 * layer[1])

    def means(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.axes is None:
            return v, v, v
        row, column = self.axes
        rows, columns = v.mean(axis=column, keepdims=True), v.mean(axis=row, keepdims=True)
        whole = rows * columns / rows.mean(axis=row, keepdims=True)
        return np.broadcast_to(rows, v.shape), np.broadcast_to(columns, v.shape), whole


def test_recomputed_with_numpy() -> None:
    optimizer, phi = build()
    w = {key: value.numpy() for key, value in phi.items()}
    tensors = [Recomputed(shape, axes) for shape, axes in zip(SHAPES, [(0, 1), None, (1, 2), None], strict=True)]
    state = initial_state(optimizer, SHAPES, like=torch.empty(0, dtype=torch.float64))
    generator = np.random.default_rng(0)
    for _ in range(12):
        gradients = generator.normal(size=sum(SIZES)) * 10.0 ** generator.uniform(-3, 1, sum(SIZES))
        gradients[20] = 1e4  # an input larger than is let through, in a tensor of 130
        parts = np.split(gradients, np.cumsum(SIZES)[:-1])
        each = zip(tensors, SHAPES, parts, strict=True)
        expected = np.concatenate([tensor.step(w, part.reshape(shape)) for tensor, shape, part in each])
        updates, state = optimizer.step(phi, observed(torch.from_numpy(gradients)), state)
        np.testing.assert_allclose(updates.numpy(), expected, rtol=1e-8)


def test_meta_gradients_agree_with_finite_differences() -> None:
    optimizer, phi = build(hidden_size=2)
    shapes = ((2, 3), (2,))

    def final_loss(*values: Tensor) -> Tensor:
        named = dict(zip(phi, values, strict=True))
        theta = torch.linspace(-2, 2, 8, dtype=torch.float64)
        state = initial_state(optimizer, shapes, like=theta)
        for _ in range(4):
            updates, state = optimizer.step(named, observed(theta**3 + 0.1, shapes), state)
            theta = theta + updates
        return (theta**4).sum()

    leaves = [value.clone().requires_grad_() for value in phi.values()]
    assert torch.autograd.gradcheck(final_loss, leaves, eps=1e-6, atol=1e-7)


def test_a_matrix_of_rank_one_is_factored_exactly() -> None:
    """What Adafactor keeps of ∇² is all of it where ∇² is the product of a column and a row."""
    generator = torch.Generator().manual_seed(0)
    squares = (torch.rand(6, 1, generator=generator) * torch.rand(1, 4, generator=generator)).flatten()
    rows, columns = factored.row_means(squares, (6, 4)), factored.column_means(squares, (6, 4))
    assert (rows.shape, columns.shape) == ((6,), (4,))
    torch.testing.assert_close(factored.inverse_roots(rows, columns, (6, 4), 0.0), squares.rsqrt())


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((), 1, 0), ((7,), 7, 0), ((3, 5), 3, 5), ((64, 3, 3, 32), 64 * 9, 32 * 9), ((2, 1), 2, 1), ((4, 4, 4), 16, 16)],
)
def test_the_two_largest_dimensions_are_factored(shape: tuple[int, ...], rows: int, columns: int) -> None:
    optimizer, _ = build()
    assert optimizer.tensor_arrays(shape) == {"clock": (1, 1), "rows": (3, rows), "columns": (3, columns)}
    squares = torch.rand(math.prod(shape))
    assert factored.row_means(squares, shape).shape == (rows,)
    assert factored.column_means(squares, shape).shape == (columns,)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e9])
def test_the_gradients_scale_does_not_matter(scale: float) -> None:
    optimizer, phi = build(torch.float32)
    plain, scaled = initial_state(optimizer, SHAPES), initial_state(optimizer, SHAPES)
    for step in range(5):
        gradients = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(step))
        expected, plain = optimizer.step(phi, observed(gradients), plain)
        updates, scaled = optimizer.step(phi, observed(gradients * scale), scaled)
        torch.testing.assert_close(updates, expected, rtol=1e-3, atol=1e-5)


def test_a_tensor_does_not_see_the_others() -> None:
    optimizer, phi = build(torch.float32)
    state, alone = initial_state(optimizer, SHAPES), initial_state(optimizer, SHAPES[:1])
    for step in range(3):
        gradients = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(step))
        updates, state = optimizer.step(phi, observed(gradients), state)
        expected, alone = optimizer.step(phi, observed(gradients[:15], SHAPES[:1]), alone)
        torch.testing.assert_close(updates[:15], expected)
        torch.testing.assert_close(state.arrays["rows"][:, :3], alone.arrays["rows"])


def test_permuted_rows_give_permuted_updates() -> None:
    optimizer, phi = build(torch.float32)
    order = [2, 0, 1]
    one, other = initial_state(optimizer, ((3, 5),)), initial_state(optimizer, ((3, 5),))
    for step in range(3):
        gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        straight, one = optimizer.step(phi, observed(gradients.flatten(), ((3, 5),)), one)
        shuffled, other = optimizer.step(phi, observed(gradients[order].flatten(), ((3, 5),)), other)
        torch.testing.assert_close(straight.view(3, 5)[order], shuffled.view(3, 5))
