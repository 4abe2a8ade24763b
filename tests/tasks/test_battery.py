"""One battery for every task family."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from optserve_server import tasks
from optserve_server.tasks.base import Batch, Split, TaskData, TaskFamily, Theta, coordinates, unflatten, vectorized


class Row(NamedTuple):
    """A family with parameters, a learning rate of gradient descent on it, and the tensor that tells its halves."""

    family: str
    parameters: dict[str, Any]
    learning_rate: float
    told_by: str

    def build(self) -> TaskFamily:
        return tasks.build(self.family, self.parameters)


NOISY = {"batch_size": 16, "label_noise": 0.3, "initial_scale": 2.0}
ROWS = {
    "quadratic": Row("quadratic", {}, 0.01, "y"),
    "quadratic-1": Row("quadratic", {"dimension": 1}, 0.01, "y"),
    "noisy-quadratic": Row("noisy-quadratic", {"dimension": 5, "scale": 3.0}, 0.1, "minimum"),
    "noisy-quadratic-noise": Row("noisy-quadratic", {"noise": 0.1, "condition_number": 1e4}, 0.1, "minimum"),
    "ackley": Row("classic-2d", {"function": "ackley"}, 0.01, "minimum"),
    "beale": Row("classic-2d", {"function": "beale"}, 1e-3, "minimum"),
    "rastrigin": Row("classic-2d", {"function": "rastrigin"}, 0.001, "minimum"),
    "rosenbrock": Row("classic-2d", {}, 1e-5, "minimum"),
    "logistic-regression": Row("logistic-regression", {"data": "wine", "rows": 20}, 0.1, "features"),
    "matrix-factorisation": Row("matrix-factorisation", {"rows": 5, "rank": 2, "noise": 0.1}, 0.1, "left"),
    "digits-mlp": Row("digits-mlp", {"batch_size": 16}, 1.0, "images"),
    "digits-mlp-noise": Row("digits-mlp", {"hidden_sizes": [12, 9], "activation": "tanh", **NOISY}, 0.3, "images"),
    "digits-linear": Row("digits-mlp", {"hidden_sizes": [], "batch_size": 16}, 0.1, "images"),
    "breast-cancer": Row("tabular-mlp", {"activation": "gelu", "batch_size": 8}, 0.1, "features"),
    "diabetes": Row("tabular-mlp", {"data": "diabetes", "activation": "tanh", "batch_size": 8}, 0.1, "features"),
    "iris": Row("tabular-mlp", {"data": "iris", "hidden_sizes": [3], "batch_size": 8}, 0.1, "features"),
    "clusters-mlp": Row("clusters-mlp", {"activation": "gelu", "batch_size": 8, "label_noise": 0.1}, 0.1, "centres"),
    "teacher-mlp": Row("teacher-mlp", {"batch_size": 8, "noise": 0.1, "features": 3}, 0.1, "W"),
    "digits-conv": Row("digits-conv", {"channels": [4, 4], "activation": "tanh", "batch_size": 16}, 1.0, "images"),
    "digits-autoencoder": Row("digits-autoencoder", {"hidden_sizes": [8, 4], "batch_size": 8}, 1.0, "images"),
    "markov-rnn": Row("markov-rnn", {"symbols": 3, "length": 6, "hidden_size": 6, "batch_size": 16}, 3.0, "logits"),
    "synthetic-mlp": Row("synthetic-mlp", {"label_noise": 0.2, "normalised": True}, 0.1, "scales"),
    "synthetic-rows": Row("synthetic-mlp", {"data": "teacher-classes", "rows": 30}, 0.3, "scales"),
    "synthetic-values": Row("synthetic-mlp", {"data": "teacher-values", "ill_scaling": 0.5}, 0.03, "scales"),
    "synthetic-correlated": Row("synthetic-mlp", {"correlation": 2.0, "batch_size": 32}, 0.03, "scales"),
    "synthetic-autoencoder": Row("synthetic-mlp", {"data": "autoencoder", "activation": "silu"}, 0.3, "scales"),
    "patterns-conv": Row("patterns-conv", {"activation": "tanh", "batch_size": 32}, 0.3, "patterns"),
    "echo-rnn": Row("echo-rnn", {"length": 4, "hidden_size": 6, "batch_size": 16}, 0.3, "echoes"),
    "varied-quadratic": Row("varied-quadratic", {"dimension": 5}, 1e-4, "minimum"),
    "curved-valley": Row("curved-valley", {}, 1e-5, "shift"),
}  # fmt: skip
EVERY = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
TASKS = 3


def draw(row: Row, split: Split = "train", seed: int = 0) -> tuple[TaskFamily, TaskData, Theta, Batch]:
    family = row.build()
    generator = torch.Generator().manual_seed(seed)
    data, theta = family.sample(generator, TASKS, split), family.initial(generator, TASKS)
    return family, data, theta, family.batch(generator, data, TASKS)


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def test_the_battery_has_every_built_in_family() -> None:
    built_in = {name for name, family in tasks.families().usable.items() if family.__module__.startswith("optserve_")}
    assert {row.family for row in ROWS.values()} == built_in


@EVERY
def test_tensors_have_the_shapes_and_types_of_the_contract(row: Row) -> None:
    family, data, theta, batch = draw(row)
    assert theta.shape == (TASKS, coordinates(family))
    assert theta.dtype == torch.float32
    tensors = unflatten(theta[0], family.shapes)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == family.shapes
    assert torch.equal(torch.cat([tensor.flatten() for tensor in tensors.values()]), theta[0])
    for value in [*data.values(), *batch.values()]:
        assert value.shape[0] == TASKS
        assert value.dtype in {torch.float32, torch.int64}
    losses = vectorized(family)(theta, data, batch)
    assert losses.shape == (TASKS,)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@EVERY
def test_the_seed_decides_what_is_drawn(row: Row) -> None:
    _, data, theta, batch = draw(row)
    _, again, theta_again, batch_again = draw(row)
    assert torch.equal(theta, theta_again)
    assert all(torch.equal(data[name], again[name]) for name in data)
    assert all(torch.equal(batch[name], batch_again[name]) for name in batch)
    _, _, other, other_batch = draw(row, seed=1)
    assert not torch.equal(theta, other)
    assert not batch or any(not torch.equal(batch[name], other_batch[name]) for name in batch)
    assert not torch.equal(theta[0], theta[1])


@EVERY
def test_no_task_is_in_both_halves(row: Row) -> None:
    """Told from the task alone: by its rows, or by a number that bfloat16 can hold in one half only."""
    family = row.build()
    halves = {}
    for split in ("train", "held-out"):
        halves[split] = family.sample(torch.Generator().manual_seed(0), 100, split)[row.told_by]
    if row.told_by in {"images", "features"}:
        rows = {split: {one.numpy().tobytes() for one in half[:2].flatten(0, 1)} for split, half in halves.items()}
        assert not rows["train"] & rows["held-out"]
    else:
        for split, half in halves.items():
            first = half.flatten(1)[:, 0]
            assert torch.equal(first == first.bfloat16(), torch.full((100,), split == "held-out"))


@EVERY
def test_tasks_side_by_side_are_the_tasks_alone(row: Row) -> None:
    family, data, theta, batch = draw(row)
    losses = vectorized(family)(theta, data, batch)
    for task in range(TASKS):
        one = {name: value[task] for name, value in data.items()}
        alone = family.loss(theta[task], one, {name: value[task] for name, value in batch.items()})
        torch.testing.assert_close(losses[task], alone)


@EVERY
def test_both_derivatives_agree_with_central_differences(row: Row) -> None:
    """In float64, as meta-training takes them: by autograd, through vmap, along a random direction."""
    family, data, theta, _ = draw(row)
    data, point = double(data), theta.double()
    batch = family.batch(torch.Generator().manual_seed(2), data, TASKS)
    assert all(value.dtype == torch.float64 for value in batch.values() if value.is_floating_point())
    losses = vectorized(family)
    assert losses(point, data, batch).dtype == torch.float64

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(losses(at, data, batch).sum(), at, create_graph=True)[0]

    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    offset = 1e-6 * direction
    slope = (losses(point + offset, data, batch) - losses(point - offset, data, batch)) / 2e-6
    torch.testing.assert_close((gradient(point) * direction).sum(dim=1).detach(), slope, rtol=1e-6, atol=1e-8)

    leaf = point.clone().requires_grad_()
    first = torch.autograd.grad(losses(leaf, data, batch).sum(), leaf, create_graph=True)[0]
    (curvature,) = torch.autograd.grad((first * direction).sum(), leaf)
    difference = (gradient(point + offset) - gradient(point - offset)).detach() / 2e-6
    torch.testing.assert_close(curvature, difference, rtol=1e-5, atol=1e-5)


@EVERY
def test_gradient_descent_reduces_the_loss(row: Row) -> None:
    family, data, theta, _ = draw(row)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(60):
        theta = theta.detach().requires_grad_()
        loss = vectorized(family)(theta, data, family.batch(generator, data, TASKS))
        (gradients,) = torch.autograd.grad(loss.sum(), theta)
        theta = theta - row.learning_rate * gradients
        losses.append(loss.detach())
    assert torch.stack(losses[-10:]).mean() < 0.95 * torch.stack(losses[:10]).mean()


FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros"}


class Elsewhere(TorchFunctionMode):
    """Notes what would be made on another device than the generator's."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in FACTORIES | {"tensor", "as_tensor"} and "device" not in (kwargs or {}):
            self.made.append(function.__name__)
        return function(*args, **(kwargs or {}))


@EVERY
def test_everything_is_drawn_on_the_generators_device(row: Row) -> None:
    draw(row)  # data sets are read once
    with Elsewhere() as elsewhere:
        family, data, theta, batch = draw(row)
        vectorized(family)(theta, data, batch)
    assert elsewhere.made == []


@EVERY
def test_no_step_looks_at_a_number(row: Row) -> None:
    """So none waits for a GPU, and the memory of a recipe can be estimated on tensors that have shapes only."""
    draw(row)  # data sets are read once
    with FakeTensorMode(allow_non_fake_inputs=True):
        family, data, theta, batch = draw(row)
        theta.requires_grad_()
        (gradients,) = torch.autograd.grad(vectorized(family)(theta, data, batch).sum(), theta, create_graph=True)
    assert gradients.shape == theta.shape
