"""“Learning to learn by gradient descent by gradient descent” (Andrychowicz et al. 2016, arXiv 1606.04474)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from optserve_server.optimizers.base import CoordinateState, Coordinatewise, Gradients, Observations, Phi, Updates
from optserve_server.optimizers.cells import check_lstm_size, initial_lstm_phi, lstm_features, lstm_stack, uniform

P = 10.0  # of the log-sign preprocessing (appendix A)


@dataclass(frozen=True)
class LSTM(Coordinatewise):
    """A coordinatewise LSTM on the preprocessed gradient: g_t = `output_scale` · (w·h + b)."""

    kind: ClassVar[str] = "lstm"
    learned: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()

    hidden_size: int = 20
    layers: int = 2
    preprocessing: Literal["log-sign", "identity"] = "log-sign"
    output_scale: float = 0.1

    def __post_init__(self) -> None:
        check_lstm_size(self.layers, self.hidden_size)

    @property
    def features(self) -> tuple[str, ...]:
        """h and c of each layer."""
        return lstm_features(self.layers, self.hidden_size)

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random cells and a small output layer, float32."""
        input_size = 2 if self.preprocessing == "log-sign" else 1
        phi = initial_lstm_phi(self.layers, input_size, self.hidden_size, generator)
        phi["output.weight"] = uniform(generator, self.hidden_size, 1, self.hidden_size)
        phi["output.bias"] = torch.zeros(1)
        return phi

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step on every coordinate alike (section 2.1)."""
        gradients = observations.gradients
        inputs = log_sign(gradients) if self.preprocessing == "log-sign" else gradients.unsqueeze(-2)
        hidden, state = lstm_stack(phi, self.layers, inputs, state)
        output = torch.matmul(phi["output.weight"], hidden).squeeze(-2) + phi["output.bias"]
        return self.output_scale * output, state


def log_sign(gradients: Gradients) -> Tensor:
    """`[…, n]` → `[…, 2, n]`: (ln|∇|/p, sign ∇) where |∇| ≥ e^{−p}, else (−1, e^p ∇) (appendix A)."""
    magnitude = gradients.abs()
    smallest = math.exp(-P)
    large = magnitude >= smallest
    logarithm = torch.where(large, torch.log(magnitude.clamp(min=smallest)) / P, -1.0)
    direction = torch.where(large, torch.sign(gradients), gradients * math.exp(P))
    return torch.stack((logarithm, direction), dim=-2)
