"""The long short-term memory cell (Hochreiter & Schmidhuber 1997), feature-major, shared by the recurrent optimizers.

Weights have the names, shapes and gate order (i, f, g, o) of `torch.nn.LSTMCell`.
"""

import math

import torch
from torch import Tensor

from optserve_server.optimizers.base import CoordinateState, Phi
from optserve_server.optimizers.hyperparameters import require_range


def lstm_cell(phi: Phi, layer: int, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of layer `layer`: `inputs` `[…, F, n]`, `hidden` and `cell` `[…, H, n]` → the next `hidden` and `cell`.

    (i, f, g, o) = W_ih x + b_ih + W_hh h + b_hh
    c' = σ(f) c + σ(i) tanh(g),    h' = σ(o) tanh(c')
    """
    name = f"cells.{layer}."
    weight = torch.cat((phi[name + "weight_ih"], phi[name + "weight_hh"]), dim=1)
    bias = (phi[name + "bias_ih"] + phi[name + "bias_hh"]).unsqueeze(-1)
    gates = torch.matmul(weight, torch.cat((inputs, hidden), dim=-2)) + bias
    i, f, g, o = gates.chunk(4, dim=-2)
    cell = torch.addcmul(torch.sigmoid(f) * cell, torch.sigmoid(i), tanh(g))
    return torch.sigmoid(o) * tanh(cell), cell


def tanh(x: Tensor) -> Tensor:
    """tanh(x) = 2σ(2x) − 1, to 1e-7: on a CPU PyTorch's own tanh takes six times as long as its σ."""
    return torch.sigmoid(2 * x).mul(2).sub(1)


def lstm_stack(phi: Phi, layers: int, inputs: Tensor, state: CoordinateState) -> tuple[Tensor, CoordinateState]:
    """One step of all layers. `state` is `[…, 2·layers·H, n]`: h and c of the first layer, then of the next."""
    parts = state.chunk(2 * layers, dim=-2)
    following: list[Tensor] = []
    for layer in range(layers):
        hidden, cell = lstm_cell(phi, layer, inputs, parts[2 * layer], parts[2 * layer + 1])
        following += [hidden, cell]
        inputs = hidden
    return inputs, torch.cat(following, dim=-2)


def check_lstm_size(layers: int, hidden_size: int) -> None:
    """Refuse sizes that no optimizer has, before anything of that size is allocated.

    Raises:
        ValueError: naming the field and its range.
    """
    require_range("architecture.layers", layers, low=1, below=9)
    require_range("architecture.hidden_size", hidden_size, low=1, below=513)


def lstm_features(layers: int, hidden_size: int) -> tuple[str, ...]:
    """Names of the rows of `lstm_stack`'s state."""
    return tuple(
        f"{part}.{layer}.{unit}" for layer in range(layers) for part in ("h", "c") for unit in range(hidden_size)
    )


def initial_lstm_phi(layers: int, input_size: int, hidden_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of all layers, uniform in ±1/√H as PyTorch draws them, but a forget bias of 1 (Gers et al. 2000)."""
    phi: dict[str, Tensor] = {}
    for layer in range(layers):
        name = f"cells.{layer}."
        rows = 4 * hidden_size
        phi[name + "weight_ih"] = uniform(generator, hidden_size, rows, input_size if layer == 0 else hidden_size)
        phi[name + "weight_hh"] = uniform(generator, hidden_size, rows, hidden_size)
        phi[name + "bias_ih"] = torch.zeros(rows)
        phi[name + "bias_ih"][hidden_size : 2 * hidden_size] = 1.0
        phi[name + "bias_hh"] = torch.zeros(rows)
    return phi


def uniform(generator: torch.Generator, fan: int, *shape: int) -> Tensor:
    """Uniform in ±1/√`fan`, float32."""
    bound = 1 / math.sqrt(fan)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
