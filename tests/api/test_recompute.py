"""Anyone can recompute g_t from a downloaded weights file: plain NumPy, from docs/http.md alone."""

import json

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

COORDINATES, STEPS = 700, 30  # three pages, the last one not full
Array = NDArray[np.float32]


def test_lstm_from_its_weights_file(server) -> None:
    api = f"{server.url}/v1"
    data = httpx.get(f"{api}/optimizers/lstm/versions/1/weights").content
    weights = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    architecture = json.loads(header["__metadata__"]["architecture"])
    assert architecture["kind"] == "lstm"
    assert architecture["preprocessing"] == "log-sign"

    parameters = [{"name": "w", "shape": [COORDINATES]}]
    session = httpx.post(f"{api}/sessions", json={"optimizer": "lstm@1", "parameters": parameters}).json()
    memory = np.zeros((architecture["layers"], 2, architecture["hidden_size"], COORDINATES), np.float64)
    generator = np.random.default_rng(0)
    for step in range(STEPS):
        scales = 10.0 ** generator.uniform(-8, 2, COORDINATES)
        gradients = (generator.normal(size=COORDINATES) * scales).astype(np.float32)
        reply = httpx.post(
            f"{api}/sessions/{session['id']}/steps/{step}",
            content=gradients.tobytes(),
            headers={"Content-Type": "application/octet-stream"},
        )
        served = np.frombuffer(reply.content, np.float32)
        expected = recompute(weights, architecture, gradients, memory)
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)
    assert np.abs(served).max() > 1e-3


def recompute(weights: dict[str, Array], architecture: dict, gradients: Array, memory: NDArray[np.float64]) -> Array:
    magnitude = np.abs(gradients.astype(np.float64))
    large = magnitude >= np.exp(-10)
    with np.errstate(divide="ignore"):
        x = np.stack(
            [
                np.where(large, np.log(magnitude) / 10, -1),
                np.where(large, np.sign(gradients), np.exp(10) * gradients),
            ]
        )
    for layer in range(architecture["layers"]):
        name = f"cells.{layer}."
        h, c = memory[layer]
        gates = weights[name + "weight_ih"] @ x + weights[name + "weight_hh"] @ h
        i, f, g, o = np.split(gates + (weights[name + "bias_ih"] + weights[name + "bias_hh"])[:, None], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        memory[layer] = x, c
    return architecture["output_scale"] * (weights["output.weight"] @ x + weights["output.bias"])[0]


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
