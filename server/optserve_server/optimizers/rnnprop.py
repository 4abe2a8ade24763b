"""“Learning gradient descent: better generalization and longer horizons” (Lv et al. 2017, arXiv 1703.03633)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import elu

from optserve_server.optimizers.base import CoordinateState, Coordinatewise, Observations, Phi, Updates
from optserve_server.optimizers.cells import check_lstm_size, initial_lstm_phi, lstm_features, lstm_stack, tanh, uniform
from optserve_server.optimizers.hyperparameters import require_range
from optserve_server.optimizers.moments import bias_correction

EPSILON = 1e-15  # far below Adam's 1e-8, so that the inputs do not depend on the gradient's scale
LARGEST = 1e18  # a gradient is cut to this: the square of a larger one would not be finite in float32


@dataclass(frozen=True)
class RNNprop(Coordinatewise):
    """A coordinatewise LSTM on Adam's own directions: its inputs are free of scale and its output is bounded.

        x = (m̂/√v̂, ∇/√v̂),    g_t = −`output_scale` · tanh(w·h + b)

    with the running moments m, v of decay `beta`, corrected for their bias as Adam's (section 4.1).
    """

    kind: ClassVar[str] = "rnnprop"
    learned: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()

    hidden_size: int = 20
    layers: int = 2
    beta: float = 0.95
    output_scale: float = 0.1

    def __post_init__(self) -> None:
        check_lstm_size(self.layers, self.hidden_size)
        require_range("architecture.beta", self.beta, below=1)

    @property
    def features(self) -> tuple[str, ...]:
        """The two moments, then h and c of each layer."""
        return ("m", "v", *lstm_features(self.layers, self.hidden_size))

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random layers with a small output, float32."""
        size = self.hidden_size
        return {
            "input.weight": uniform(generator, 2, size, 2),
            "input.bias": torch.zeros(size),
            **initial_lstm_phi(self.layers, size, size, generator),
            "output.weight": uniform(generator, size, 1, size),
            "output.bias": torch.zeros(1),
        }

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step on every coordinate alike (section 4.1)."""
        gradients = observations.gradients.clamp(-LARGEST, LARGEST)
        m = torch.lerp(gradients, state[..., 0, :], self.beta)
        v = torch.lerp(gradients.square(), state[..., 1, :], self.beta)
        correction = bias_correction(self.beta, observations.clock, gradients)
        scale = 1 / (torch.sqrt(v / correction + EPSILON**2))
        inputs = torch.stack((m / correction * scale, gradients * scale), dim=-2)
        inputs = elu(torch.matmul(phi["input.weight"], inputs) + phi["input.bias"].unsqueeze(-1))
        hidden, recurrent = lstm_stack(phi, self.layers, inputs, state[..., 2:, :])
        output = torch.matmul(phi["output.weight"], hidden).squeeze(-2) + phi["output.bias"]
        following = torch.cat((m.unsqueeze(-2), v.unsqueeze(-2), recurrent), dim=-2)
        return -self.output_scale * tanh(output), following
