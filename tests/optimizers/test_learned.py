"""The learned optimizers against independent recomputations."""

import numpy as np
import pytest
import torch

from optserve_server import optimizers
from optserve_server.optimizers import Observations, initial_state
from optserve_server.optimizers.lstm import log_sign


def test_lstm_is_two_torch_cells() -> None:
    optimizer = optimizers.build({"kind": "lstm", "output_scale": 0.3})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    cells = [torch.nn.LSTMCell(2, 20), torch.nn.LSTMCell(20, 20)]
    for layer, cell in enumerate(cells):
        prefix = f"cells.{layer}."
        cell.load_state_dict({key.removeprefix(prefix): value for key, value in phi.items() if key.startswith(prefix)})
    memories = [(torch.zeros(30, 20), torch.zeros(30, 20)) for _ in cells]
    state = initial_state(optimizer, ((30,),))
    for step in range(20):
        gradients = torch.randn(30, generator=torch.Generator().manual_seed(step)) * 10.0 ** (step % 7 - 5)
        updates, state = optimizer.step(phi, Observations(gradients, torch.tensor([float(step)])), state)
        hidden = log_sign(gradients).T
        with torch.no_grad():
            for layer, cell in enumerate(cells):
                memories[layer] = cell(hidden, memories[layer])
                hidden = memories[layer][0]
        expected = 0.3 * (hidden @ phi["output.weight"].T + phi["output.bias"]).squeeze(1)
        torch.testing.assert_close(updates, expected, rtol=1e-5, atol=1e-6)


def test_log_sign_has_both_branches_of_the_paper() -> None:
    gradients = np.array([0.0, 1e-30, -1e-30, np.exp(-10) * 0.5, -np.exp(-10) * 2, 1.0, -1.0, 1e4], dtype=np.float32)
    large = np.abs(gradients) >= np.exp(-10)
    with np.errstate(divide="ignore"):
        expected = np.stack(
            [
                np.where(large, np.log(np.abs(gradients)) / 10, -1),
                np.where(large, np.sign(gradients), np.exp(10) * gradients),
            ]
        )
    np.testing.assert_allclose(log_sign(torch.from_numpy(gradients)).numpy(), expected, rtol=1e-6)


def test_rnnprop_recomputed_with_numpy() -> None:
    optimizer = optimizers.build({"kind": "rnnprop", "hidden_size": 5})
    phi = {key: value.double() for key, value in optimizer.initial_phi(torch.Generator().manual_seed(2)).items()}
    w = {key: value.numpy() for key, value in phi.items()}
    n, beta = 7, 0.95
    m, v = np.zeros(n), np.zeros(n)
    memory = np.zeros((2, 2, 5, n))
    state = initial_state(optimizer, ((n,),), like=torch.empty(0, dtype=torch.float64))
    for step in range(10):
        gradients = np.random.default_rng(step).normal(size=n)
        updates, state = optimizer.step(
            phi, Observations(torch.from_numpy(gradients), torch.tensor([float(step)], dtype=torch.float64)), state
        )
        m, v = beta * m + (1 - beta) * gradients, beta * v + (1 - beta) * gradients**2
        m_hat, v_hat = m / (1 - beta ** (step + 1)), v / (1 - beta ** (step + 1))
        x = (
            w["input.weight"] @ np.stack([m_hat / np.sqrt(v_hat), gradients / np.sqrt(v_hat)])
            + w["input.bias"][:, None]
        )
        x = np.where(x > 0, x, np.expm1(x))
        for layer in range(2):
            x = memory[layer, 0] = numpy_cell(w, layer, x, memory[layer])
        expected = -0.1 * np.tanh(w["output.weight"] @ x + w["output.bias"])[0]
        np.testing.assert_allclose(updates.numpy(), expected, rtol=1e-10)


def numpy_cell(w: dict[str, np.ndarray], layer: int, x: np.ndarray, memory: np.ndarray) -> np.ndarray:
    name = f"cells.{layer}."
    bias = w[name + "bias_ih"] + w[name + "bias_hh"]
    i, f, g, o = np.split(w[name + "weight_ih"] @ x + w[name + "weight_hh"] @ memory[0] + bias[:, None], 4)
    memory[1] = memory[1] / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    return np.tanh(memory[1]) / (1 + np.exp(-o))


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e8])
def test_rnnprop_does_not_see_the_gradients_scale(scale: float) -> None:
    optimizer = optimizers.build({"kind": "rnnprop"})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    plain, scaled = initial_state(optimizer, ((20,),)), initial_state(optimizer, ((20,),))
    for step in range(5):
        gradients = torch.randn(20, generator=torch.Generator().manual_seed(step))
        clock = torch.tensor([float(step)])
        expected, plain = optimizer.step(phi, Observations(gradients, clock), plain)
        updates, scaled = optimizer.step(phi, Observations(gradients * scale, clock), scaled)
        torch.testing.assert_close(updates, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "rnnprop"])
def test_meta_gradients_agree_with_finite_differences(kind: str) -> None:
    optimizer = optimizers.build({"kind": kind, "hidden_size": 3, "layers": 2})
    phi = {key: value.double() for key, value in optimizer.initial_phi(torch.Generator().manual_seed(0)).items()}

    def moved(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(phi, values, strict=True))
        theta = torch.linspace(-2, 2, 4, dtype=torch.float64)
        state = initial_state(optimizer, ((4,),), like=theta)
        for step in range(4):
            clock = torch.tensor([float(step)])
            updates, state = optimizer.step(named, Observations(theta**3 + 0.1, clock), state)
            theta = theta + updates
        return (theta**4).sum()

    leaves = [value.clone().requires_grad_() for value in phi.values()]
    assert torch.autograd.gradcheck(moved, leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "lsmt"}, "did you mean 'lstm'"),
        ({}, "no architecture None"),
        ({"kind": "lstm", "hiden_size": 3}, "did you mean 'hidden_size'"),
        ({"kind": "lstm", "hidden_size": 10**9}, "hidden_size is 1000000000"),
        ({"kind": "lstm", "hidden_size": 2.5}, "must be a whole number"),
        ({"kind": ["lstm"]}, "no architecture"),
        ({"kind": "lstm", "layers": 0}, "must be above 0"),
        ({"kind": "lstm", "output_scale": float("nan")}, "must be above 0 and at most 1e"),
        ({"kind": "lstm", "output_scale": float("inf")}, "must be above 0 and at most 1e"),
        ({"kind": "lstm", "output_scale": 10**400}, "must be above 0 and at most 1e"),
        ({"kind": "rnnprop", "beta": 1}, r"beta is 1, but must be at least 0 and below 1"),
        ({"kind": "lstm", "preprocessing": "log"}, "must be one of log-sign, identity"),
    ],
)
def test_a_wrong_architecture_is_named(description: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizers.build(description)
