"""Curved valleys: chains of Rosenbrock's function."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half


@dataclass(frozen=True)
class CurvedValley:
    """f(θ) = s · Σ_i a (θ_{i+1} − b_i θ_i² − c_i)² + (θ_i − 1)², after Rosenbrock 1960, each task with its own numbers.

    a, the valley's steepness, is log-uniform from 1 to 100, s from 10⁻³ to 10³; b_i is near ±1, and c_i is small.
    """

    name: ClassVar[str] = "curved-valley"
    description: ClassVar[str] = "chains of Rosenbrock's function with valleys more or less steep, each task its own"

    dimension: Annotated[int, Ge(2), Le(1000)] = 4

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {"theta": (self.dimension,)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """b, c `[tasks, d − 1]`, the first number of c telling the half; a and s `[tasks]`."""
        links, device = self.dimension - 1, generator.device

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.empty(tasks, *shape, device=device).uniform_(low, high, generator=generator)

        signs = torch.where(uniform(0, 1, links) < 0.5, -1.0, 1.0)
        return {
            "bend": signs * uniform(0.3, 1.2, links),
            "shift": in_half(0.3 * torch.randn(tasks, links, generator=generator, device=device), split),
            "steepness": 10 ** uniform(0, 2),
            "scale": 10 ** uniform(-3, 3),
        }

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """θ_0 `[tasks, d]`, normal."""
        return 1.2 * torch.randn(tasks, self.dimension, generator=generator, device=generator.device)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Nothing: f is deterministic."""
        return {}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f(θ)."""
        here, following = theta[:-1], theta[1:]
        across = following - task["bend"] * here.square() - task["shift"]
        return task["scale"] * (task["steepness"] * across.square() + (here - 1).square()).sum()
