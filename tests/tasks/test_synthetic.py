"""What the generated families compute, against NumPy, closed forms and statistics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.func import grad

from optserve_server import tasks
from optserve_server.tasks.base import Batch, TaskData, TaskFamily, Theta, in_half, vectorized
from optserve_server.tasks.classic_2d import FUNCTIONS


def draw(name: str, parameters: dict[str, Any], count: int = 3) -> tuple[TaskFamily, TaskData, Theta, Batch]:
    family = tasks.build(name, parameters)
    generator = torch.Generator().manual_seed(0)
    data, theta = family.sample(generator, count, "train"), family.initial(generator, count)
    return family, data, theta, family.batch(generator, data, count)


def first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[0].double() if value.is_floating_point() else value[0] for name, value in tensors.items()}


# --- halves -----------------------------------------------------------------------------------------------------------


def test_a_number_that_is_in_the_wrong_half_moves_as_little_as_it_can() -> None:
    numbers = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-3.5, 7.0], [0.1, 0.1]])
    train, held_out = in_half(numbers, "train"), in_half(numbers, "held-out")
    assert torch.equal(train[:, 1], numbers[:, 1])
    assert torch.equal(held_out[:, 1], numbers[:, 1])
    assert torch.equal(held_out[:3, 0], numbers[:3, 0])
    assert held_out[3, 0].item() == pytest.approx(0.1, rel=1 / 256)
    assert held_out[3, 0] != numbers[3, 0]
    assert train[3, 0] == numbers[3, 0]
    for moved, number in zip(train[:3, 0].numpy(), numbers[:3, 0].numpy(), strict=True):
        assert moved == np.nextafter(number, np.float32(np.inf))
    assert not (train[:, 0] == train[:, 0].bfloat16()).any()


def test_the_halves_of_a_generated_family_are_one_distribution() -> None:
    train, held_out = (
        tasks.build("quadratic", {}).sample(torch.Generator().manual_seed(0), 200, split)
        for split in ("train", "held-out")
    )
    assert torch.equal(train["W"], held_out["W"])
    assert torch.equal(train["y"][:, 1:], held_out["y"][:, 1:])
    torch.testing.assert_close(train["y"], held_out["y"], rtol=1 / 256, atol=0)


# --- quadratics -------------------------------------------------------------------------------------------------------


def test_quadratic_is_the_papers() -> None:
    family, data, theta, _ = draw("quadratic", {})
    w, y = data["W"][1].numpy(), data["y"][1].numpy()
    assert w.shape == (10, 10)
    expected = np.linalg.norm(w @ theta[1].numpy() - y) ** 2
    assert vectorized(family)(theta, data, {})[1].item() == pytest.approx(expected, rel=1e-5)
    many = family.sample(torch.Generator().manual_seed(0), 500, "train")["W"]
    assert abs(many.mean().item()) < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_the_bundled_recipes_quadratics_are_plain_normal_draws() -> None:
    """Bit for bit, so that what was meta-trained on them can be made again."""
    data = tasks.build("quadratic", {}).sample(torch.Generator().manual_seed(0), 128, "train")
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(data["W"], torch.randn(128, 10, 10, generator=generator))
    assert torch.equal(data["y"], torch.randn(128, 10, generator=generator))


def test_the_condition_number_is_that_of_the_hessian() -> None:
    family, data, theta, _ = draw("noisy-quadratic", {"dimension": 6, "condition_number": 1000, "scale": 5.0})
    one = first(data)
    eigenvalues = torch.linalg.eigvalsh(hessian(lambda at: family.loss(at, one, {}), theta[0].double()))
    torch.testing.assert_close(eigenvalues.flip(0), 5 * 10 ** torch.linspace(0, -3, 6).double(), rtol=1e-4, atol=1e-6)
    assert family.loss(one["minimum"], one, {}).item() == 0
    assert (one["axes"] @ torch.eye(6).double()).abs().max() < 0.999  # the axes are not θ's own


def test_noise_raises_the_mean_of_a_quadratic_by_its_trace() -> None:
    parameters = {"dimension": 4, "condition_number": 8.0, "noise": 0.5, "scale": 3.0}
    family, data, _, _ = draw("noisy-quadratic", parameters, count=20_000)
    data = {name: value[:1].expand_as(value) for name, value in data.items()}
    batch = family.batch(torch.Generator().manual_seed(1), data, 20_000)
    at_minimum = vectorized(family)(data["minimum"], data, batch)
    trace = sum(8.0 ** -(i / 3) for i in range(4))
    assert at_minimum.mean().item() == pytest.approx(3.0 * 0.25 * trace / 2, rel=0.03)
    quiet = tasks.build("noisy-quadratic", {**parameters, "noise": 0.0})
    assert quiet.batch(torch.Generator(), data, 20_000) == {}


# --- functions of two variables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "x", "value"),
    [
        ("rosenbrock", (1, 1), 0),
        ("rosenbrock", (-1, 1), 4),
        ("rosenbrock", (0, 2), 401),
        ("beale", (3, 0.5), 0),
        ("beale", (0, 0), 1.5**2 + 2.25**2 + 2.625**2),
        ("beale", (1, 2), 2.5**2 + 5.25**2 + 9.625**2),
        ("ackley", (0, 0), 0),
        ("ackley", (1, 1), 20 - 20 * math.exp(-0.2)),
        ("ackley", (0.5, 0.5), 20 + math.e - 20 * math.exp(-0.1) - math.exp(-1)),
        ("rastrigin", (0, 0), 0),
        ("rastrigin", (1, 2), 5),
        ("rastrigin", (0.5, 0), 20.25),
    ],
)
def test_known_values(function: Any, x: tuple[float, float], value: float) -> None:
    assert FUNCTIONS[function].value(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_classic_is_turned_about_its_minimum_and_moved(function: Any) -> None:
    family, data, theta, _ = draw("classic-2d", {"function": function})
    one = first(data)
    assert family.loss(one["minimum"], one, {}).item() == pytest.approx(0, abs=1e-6)
    assert grad(family.loss)(one["minimum"], one, {}).abs().max() < 1e-6
    torch.testing.assert_close(one["rotation"] @ one["rotation"].T, torch.eye(2).double(), atol=1e-6, rtol=0)
    assert torch.linalg.det(one["rotation"]).item() == pytest.approx(1)
    away = one["rotation"].numpy() @ (theta[0].double() - one["minimum"]).numpy()
    expected = FUNCTIONS[function].value(torch.from_numpy(away + np.array(FUNCTIONS[function].minimum)))
    torch.testing.assert_close(family.loss(theta[0].double(), one, {}), expected)
    many = family.initial(torch.Generator().manual_seed(0), 1000)
    assert many.abs().max().item() == pytest.approx(4 if function in {"ackley", "rastrigin"} else 2, rel=0.01)


def test_ackley_has_derivatives_at_its_minimum() -> None:
    """In float32 too: meta-training may come to stand there."""
    family, data, _, _ = draw("classic-2d", {"function": "ackley"})
    one = {name: value[0] for name, value in data.items()}
    assert hessian(lambda at: family.loss(at, one, {}), one["minimum"]).isfinite().all()


# --- matrices ---------------------------------------------------------------------------------------------------------


def test_matrix_factorisation_is_the_mean_square_of_the_difference() -> None:
    parameters = {"rows": 7, "columns": 5, "rank": 3}
    family, data, theta, _ = draw("matrix-factorisation", parameters)
    u, v = theta[1, :21].reshape(7, 3).numpy(), theta[1, 21:].reshape(5, 3).numpy()
    m = data["M"][1].numpy()
    assert vectorized(family)(theta, data, {})[1].item() == pytest.approx(np.mean((u @ v.T - m) ** 2), rel=1e-5)
    assert np.linalg.matrix_rank(m, tol=1e-4) == 3
    many = family.sample(torch.Generator().manual_seed(0), 2000, "train")["M"]
    assert many.var().item() == pytest.approx(1, rel=0.1)
    noisy = tasks.build("matrix-factorisation", {**parameters, "noise": 2.0})
    assert noisy.sample(torch.Generator().manual_seed(0), 2000, "train")["M"].var().item() == pytest.approx(5, rel=0.1)


# --- perceptrons on generated data ------------------------------------------------------------------------------------


def test_points_lie_around_the_centres_of_their_classes() -> None:
    _, data, _, batch = draw("clusters-mlp", {"features": 4, "spread": 0.5, "batch_size": 1000})
    centres = data["centres"][1][batch["labels"][1]]
    away = batch["points"][1] - centres
    assert away.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(away.mean().item()) < 0.03
    assert set(batch["labels"][1].tolist()) == {0, 1, 2, 3}


def test_label_noise_draws_a_share_of_the_labels_anew() -> None:
    clean = draw("clusters-mlp", {"batch_size": 1000, "classes": 4})[3]
    noisy = draw("clusters-mlp", {"batch_size": 1000, "classes": 4, "label_noise": 0.4})[3]
    assert torch.equal(clean["points"], noisy["points"])
    assert (clean["labels"] != noisy["labels"]).float().mean().item() == pytest.approx(0.4 * 3 / 4, abs=0.03)


def test_a_teacher_gives_the_targets() -> None:
    _, data, _, batch = draw("teacher-mlp", {"features": 3, "teacher_size": 5, "batch_size": 7})
    w, v, x = data["W"][2].numpy(), data["v"][2].numpy(), batch["inputs"][2].numpy()
    np.testing.assert_allclose(batch["targets"][2].numpy(), np.tanh(x @ w.T) @ v, atol=1e-6)
    noisy = draw("teacher-mlp", {"features": 3, "teacher_size": 5, "batch_size": 1000, "noise": 2.0})[3]
    quiet = draw("teacher-mlp", {"features": 3, "teacher_size": 5, "batch_size": 1000})[3]
    assert (noisy["targets"] - quiet["targets"]).std().item() == pytest.approx(2, rel=0.05)


# --- sequences --------------------------------------------------------------------------------------------------------


def test_symbols_follow_their_chain() -> None:
    """Every pair's successors have the frequencies of the softmax."""
    parameters = {"symbols": 3, "length": 64, "batch_size": 1000, "sharpness": 1.5}
    _, data, _, batch = draw("markov-rnn", parameters, count=2)
    symbols = batch["sequences"][1].argmax(dim=-1)
    counts = torch.zeros(3, 3, 3)
    for a, b, c in zip(symbols[:, :-2].T, symbols[:, 1:-1].T, symbols[:, 2:].T, strict=True):
        counts.index_put_((a, b, c), torch.ones(1000), accumulate=True)
    expected = torch.softmax(1.5 * data["logits"][1], dim=-1)
    torch.testing.assert_close(counts / counts.sum(dim=-1, keepdim=True), expected, atol=0.03, rtol=0)
    assert batch["sequences"].sum(dim=-1).eq(1).all()


def test_a_recurrent_network_is_torchs_gru() -> None:
    parameters = {"symbols": 4, "length": 6, "hidden_size": 5, "batch_size": 3}
    family, data, theta, batch = draw("markov-rnn", parameters)
    gru, output = torch.nn.GRU(4, 5, batch_first=True), torch.nn.Linear(5, 4)
    torch.nn.utils.vector_to_parameters(theta[2], [*gru.parameters(), *output.parameters()])
    sequences = batch["sequences"][2]
    logits = output(gru(sequences[:, :-1])[0])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].argmax(dim=-1).flatten())
    torch.testing.assert_close(vectorized(family)(theta, data, batch)[2], expected.detach())
    assert theta.abs().max().item() == pytest.approx(5**-0.5, rel=0.05)
