"""Random quadratics: the synthetic optimizees of Andrychowicz et al. 2016, section 3.1."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half


@dataclass(frozen=True)
class Quadratic:
    """f(θ) = ‖Wθ − y‖², the entries of W, y and θ_0 standard normal."""

    name: ClassVar[str] = "quadratic"
    description: ClassVar[str] = "f(θ) = ‖Wθ − y‖² with the entries of W, y and θ_0 standard normal"

    dimension: Annotated[int, Ge(1), Le(10_000)] = 10

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {"theta": (self.dimension,)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """W `[tasks, d, d]` and y `[tasks, d]`, whose first entry tells the half."""
        d = self.dimension
        return {
            "W": torch.randn(tasks, d, d, generator=generator, device=generator.device),
            "y": in_half(torch.randn(tasks, d, generator=generator, device=generator.device), split),
        }

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """θ_0 `[tasks, d]`."""
        return torch.randn(tasks, self.dimension, generator=generator, device=generator.device)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Nothing: f is deterministic."""
        return {}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """‖Wθ − y‖²."""
        return (task["W"] @ theta - task["y"]).square().sum()
