"""What the families of neural networks have in common: sizes, activations, initial values, perceptrons."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor
from torch.nn.functional import gelu

from optserve_server.tasks.base import Theta

Size = Annotated[int, Ge(1), Le(1024)]
HiddenSizes = Annotated[tuple[Size, ...], Len(0, 8)]
BatchSize = Annotated[int, Ge(1), Le(1000)]
InitialScale = Annotated[float, Gt(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
Activation = Literal["sigmoid", "tanh", "relu", "gelu"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": gelu,
}


def perceptron_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Weights [out, in] and biases [out] of each layer, numbered from 0."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes[f"{layer}.weight"] = (fan_out, fan_in)
        shapes[f"{layer}.bias"] = (fan_out,)
    return shapes


def perceptron(tensors: Mapping[str, Tensor], inputs: Tensor, activation: Activation) -> Tensor:
    """The outputs `[rows, out]` of a perceptron without activation behind its last layer, for inputs `[rows, in]`."""
    layers = len(tensors) // 2
    hidden = inputs
    for layer in range(layers):
        if layer:
            hidden = ACTIVATIONS[activation](hidden)
        hidden = hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
    return hidden


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
