"""The contract of a task family: a distribution over optimizees f.

A family is a frozen dataclass of its parameters. A *task* is one f drawn from it: a dictionary of tensors. `loss` is
written for one task and one flat θ; `vectorized` turns it into the losses of many tasks at once.

Every family has two disjoint halves: `train`, which meta-training sees, and `held-out`, which only validation,
evaluation and the demo see. Tasks of generated data are all different, so there the halves are the same distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Split = Literal["train", "held-out"]
Theta = Tensor  # [n] of one task, [tasks, n] of many
TaskData = dict[str, Tensor]  # each [...] of one task, [tasks, ...] of many
Batch = dict[str, Tensor]  # what f is evaluated on at one step, likewise


class TaskFamily(Protocol):
    """A distribution over optimizees f. Implementations are frozen dataclasses; their fields are its parameters."""

    name: ClassVar[str]
    description: ClassVar[str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameter tensors that θ is the concatenation of, in order."""
        ...

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """Draw `tasks` tasks: tensors `[tasks, …]`, float32 or int64."""
        ...

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """Draw θ_0, `[tasks, n]`, float32."""
        ...

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Draw what one step sees of the data: tensors `[tasks, …]`; empty where f is deterministic."""
        ...

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f(θ) of one task: θ is `[n]`, the result a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class Layer:
    """Where one parameter tensor lies in the flat θ."""

    start: int
    stop: int
    shape: tuple[int, ...]


def layout(shapes: dict[str, tuple[int, ...]]) -> dict[str, Layer]:
    """Where each parameter tensor lies in the flat θ, in the order of `shapes`."""
    layers: dict[str, Layer] = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        layers[name] = Layer(start, stop, shape)
        start = stop
    return layers


def unflatten(theta: Theta, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parameter tensors of one flat θ, `[n]`, as views by name."""
    return {name: theta[layer.start : layer.stop].reshape(layer.shape) for name, layer in layout(shapes).items()}


def coordinates(family: TaskFamily) -> int:
    """n: how many numbers θ has."""
    return sum(math.prod(shape) for shape in family.shapes.values())


def vectorized(family: TaskFamily) -> Callable[[Theta, TaskData, Batch], Tensor]:
    """f of many tasks at once: θ `[tasks, n]`, task data and batch `[tasks, …]` → losses `[tasks]`."""
    return torch.func.vmap(family.loss)
