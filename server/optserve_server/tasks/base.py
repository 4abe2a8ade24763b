"""The contract of a task family: a distribution over optimizees f.

A family is a frozen dataclass of its parameters. A *task* is one f drawn from it: a dictionary of tensors. `loss` is
written for one task and one flat θ; `vectorized` turns it into the losses of many tasks at once.

Every family has two disjoint halves: `train`, which meta-training sees, and `held-out`, which only validation,
evaluation and the demo see. What tells them apart can be seen in the task itself:

- Families on a data set share out its rows; equal rows lie in the same half. They may say so, `shares_rows = True`:
  then the rows of one half tell how well a θ does that was trained on those of the other.
- Families that generate their tasks draw both halves from one distribution. No two of their tasks are ever the same,
  but that is only probable; `in_half` makes it certain. It looks at one number of a task, which f depends on: the
  held-out half has the numbers that bfloat16 can hold, one in 65,536 of float32, and the training half all others.

Everything is drawn on `generator.device`, and nothing looks at the numbers of a tensor (no `.item()`, no shape that
depends on data): a step never waits for the device, and runs on tensors that have shapes only, as the estimate of a
recipe's memory does. `loss` is differentiated twice, through `vmap`, in float32 and in float64.
"""

import math
from collections.abc import Callable
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
        """Draw `tasks` tasks of one half: tensors `[tasks, …]`, float32 or int64."""
        ...

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """Draw θ_0, `[tasks, n]`, float32."""
        ...

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Draw what one step sees: tensors `[tasks, …]`, as precise as the task's; empty where f is deterministic."""
        ...

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f(θ) of one task: θ is `[n]`, the result a scalar."""
        ...


def unflatten(theta: Theta, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parameter tensors of one flat θ, `[n]`, as views by name."""
    # Split at once: of slices, the derivative of each would be a vector of zeros as long as θ.
    parts = torch.split(theta, [math.prod(shape) for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def coordinates(family: TaskFamily) -> int:
    """n: how many numbers θ has."""
    return sum(math.prod(shape) for shape in family.shapes.values())


def has_other_rows(family: TaskFamily) -> bool:
    """Whether the two halves are one problem on different rows."""
    return bool(getattr(family, "shares_rows", False))


def in_half(numbers: Tensor, split: Split) -> Tensor:
    """Put generated tasks into their half by the first number of each of `numbers`, float32 `[tasks, …]`.

    Held out, that number is rounded to bfloat16, which moves it by at most 1/256 of itself. In the training half one
    task in 65,536 has such a number by chance; it moves to the next float32. Nothing else changes.
    """
    first, others = numbers.reshape(len(numbers), -1).tensor_split([1], dim=1)
    rounded = first.bfloat16().float()
    if split == "train":
        rounded = torch.where(first == rounded, torch.nextafter(first, torch.full_like(first, math.inf)), first)
    return torch.cat([rounded, others], dim=1).view_as(numbers)


def vectorized(family: TaskFamily) -> Callable[[Theta, TaskData, Batch], Tensor]:
    """f of many tasks at once: θ `[tasks, n]`, task data and batch `[tasks, …]` → losses `[tasks]`."""
    return torch.func.vmap(family.loss)
