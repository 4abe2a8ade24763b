"""What the families of neural networks have in common: sizes, activations, initial values, perceptrons."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm, silu

from optserve_server.tasks.base import Batch, Theta, unflatten

Size = Annotated[int, Ge(1), Le(1024)]
HiddenSizes = Annotated[tuple[Size, ...], Len(0, 8)]
BatchSize = Annotated[int, Ge(1), Le(1000)]
InitialScale = Annotated[float, Gt(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
Activation = Literal["sigmoid", "tanh", "relu", "gelu", "silu"]
Error = Literal["cross-entropy", "squared-error"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": gelu,
    "silu": silu,
}


def perceptron_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Weights [out, in] and biases [out] of each layer, numbered from 0."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes[f"{layer}.weight"] = (fan_out, fan_in)
        shapes[f"{layer}.bias"] = (fan_out,)
    return shapes


@dataclass(frozen=True)
class Perceptron:
    """A perceptron and the error of its outputs: what a family's f is, where it is that and nothing else.

    f is the mean `error` of the outputs for `batch[inputs]`, `[rows, sizes[0]]`: cross-entropy with the classes
    `batch[targets]`, `[rows]`, or squared error, by entry, of the targets `[rows, sizes[-1]]` (or `[rows]`). With
    `normalised`, what goes into an activation has mean 0 and variance 1 over the layer's units.
    """

    sizes: tuple[int, ...]
    activation: Activation
    error: Error
    inputs: str
    targets: str
    normalised: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return perceptron_shapes(self.sizes)

    def outputs(self, theta: Theta, inputs: Tensor) -> Tensor:
        """The outputs `[rows, out]` for inputs `[rows, in]`, without an activation behind the last layer."""
        tensors = unflatten(theta, self.shapes)
        hidden = inputs
        for layer in range(len(self.sizes) - 1):
            if layer:
                hidden = layer_norm(hidden, hidden.shape[-1:]) if self.normalised else hidden
                hidden = ACTIVATIONS[self.activation](hidden)
            hidden = hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
        return hidden

    def loss(self, theta: Theta, batch: Batch) -> Tensor:
        """f(θ), a scalar."""
        outputs, targets = self.outputs(theta, batch[self.inputs]), batch[self.targets]
        if self.error == "cross-entropy":
            return cross_entropy(outputs, targets)
        return (outputs - targets.view_as(outputs)).square().mean()


def initial_uniform(
    shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator, tasks: int, scale: float = 1.0
) -> Theta:
    """θ_0 as PyTorch draws linear and convolutional layers: uniform in ±`scale`/√(fan in), a bias as its weights."""
    parts = []
    fan_in = 1
    for shape in shapes.values():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else fan_in
        bound = scale / math.sqrt(fan_in)
        part = torch.empty(tasks, math.prod(shape), device=generator.device)
        parts.append(part.uniform_(-bound, bound, generator=generator))
    return torch.cat(parts, dim=1)
