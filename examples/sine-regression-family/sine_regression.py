"""Sine waves to be fitted by a small network: the regression of Finn et al. 2017 (arXiv 1703.03400), section 5.1."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half, unflatten


@dataclass(frozen=True)
class SineRegression:
    """Mean squared error of a network 1 – hidden – 1 with tanh against a · sin(x − p); each task has its a and p.

    a is uniform in 0.1 … 5, p in 0 … π, and x in −5 … 5, new at every step.
    """

    name: ClassVar[str] = "sine-regression"
    description: ClassVar[str] = "mean squared error of a small network that is fitted to a random sine wave"

    hidden_size: Annotated[int, Ge(1), Le(1000)] = 40
    batch_size: Annotated[int, Ge(1), Le(1000)] = 20

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of the hidden units, weights of the output and its bias."""
        return {
            "weight": (self.hidden_size,),
            "bias": (self.hidden_size,),
            "output": (self.hidden_size,),
            "level": (1,),
        }

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """a and p, each `[tasks]`; a tells which half the task is of."""
        a = torch.empty(tasks, device=generator.device).uniform_(0.1, 5, generator=generator)
        p = torch.empty(tasks, device=generator.device).uniform_(0, math.pi, generator=generator)
        return {"a": in_half(a, split), "p": p}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """Standard normal; the output's weights smaller with the square root of their number, its bias 0."""
        drawn = torch.randn(tasks, 3, self.hidden_size, generator=generator, device=generator.device)
        drawn[:, 2] /= math.sqrt(self.hidden_size)
        return torch.cat([drawn.flatten(1), drawn.new_zeros(tasks, 1)], dim=1)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` places x for each task, as precise as the task itself."""
        x = torch.empty(tasks, self.batch_size, device=generator.device).uniform_(-5, 5, generator=generator)
        return {"x": x.to(task_data["a"].dtype)}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """The mean squared error of one task: θ is `[n]`, x `[batch_size]`, a and p are numbers."""
        tensors, x = unflatten(theta, self.shapes), batch["x"]
        hidden = torch.tanh(x[:, None] * tensors["weight"] + tensors["bias"])
        wave = task["a"] * torch.sin(x - task["p"])
        return (hidden @ tensors["output"] + tensors["level"] - wave).square().mean()
