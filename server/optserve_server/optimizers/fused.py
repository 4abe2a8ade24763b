"""The optimizers that have a kernel of their own on the CPU, and how each is handed to it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optserve_server.optimizers import recurrent_kernel, rnnprop
from optserve_server.optimizers.base import PAGE, Observations, Phi, Updates
from optserve_server.optimizers.lstm import LSTM, P
from optserve_server.optimizers.moments import bias_correction
from optserve_server.optimizers.recurrent_kernel import pack_cells
from optserve_server.optimizers.rnnprop import RNNprop

FusedStep = Callable[[Any, Phi, Tensor, Tensor, Observations], Updates]
"""Steps pages in place: optimizer, φ, arena `[capacity, features, 256]`, page numbers, observations → updates."""


def step_lstm(optimizer: LSTM, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    """`LSTM.step` on pages."""
    updates = torch.empty_like(observations.gradients)
    smallest = math.exp(-P) if optimizer.preprocessing == "log-sign" else 0.0
    recurrent_kernel.step_lstm_pages(
        arena.numpy(),
        numbers.numpy(),
        observations.gradients.numpy(),
        *pack_cells(phi, optimizer.layers),
        *_output(phi),
        np.float32(optimizer.output_scale),
        np.float32(smallest),
        np.float32(P),
        updates.numpy(),
    )
    return updates


def step_rnnprop(optimizer: RNNprop, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    """`RNNprop.step` on pages."""
    gradients = observations.gradients
    updates = torch.empty_like(gradients)
    corrections = bias_correction(optimizer.beta, observations.clock, gradients).expand_as(gradients)
    recurrent_kernel.step_rnnprop_pages(
        arena.numpy(),
        numbers.numpy(),
        gradients.numpy(),
        np.ascontiguousarray(corrections),
        phi["input.weight"].numpy(),
        phi["input.bias"].numpy(),
        *pack_cells(phi, optimizer.layers),
        *_output(phi),
        np.float32(optimizer.output_scale),
        np.float32(optimizer.beta),
        np.float32(rnnprop.EPSILON),
        np.float32(rnnprop.LARGEST),
        updates.numpy(),
    )
    return updates


FUSED: dict[str, FusedStep] = {LSTM.kind: step_lstm, RNNprop.kind: step_rnnprop}


def compile_kernels() -> None:
    """Compile all kernels, or read them from Numba's cache: seconds the first time on a machine, then 0.1 s."""
    for optimizer in (LSTM(hidden_size=1, layers=1), RNNprop(hidden_size=1, layers=1)):
        phi = optimizer.initial_phi(torch.Generator())
        arena = torch.zeros(1, len(optimizer.features), PAGE)
        observations = Observations(torch.zeros(1, PAGE), torch.zeros(1))
        FUSED[optimizer.kind](optimizer, phi, arena, torch.zeros(1, dtype=torch.int64), observations)


def _output(phi: Phi) -> tuple[recurrent_kernel.Float32s, np.float32]:
    return phi["output.weight"].numpy()[0], np.float32(phi["output.bias"].item())
