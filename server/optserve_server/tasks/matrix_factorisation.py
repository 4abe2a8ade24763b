"""Matrix factorisation, the simplest problem that is convex in either factor and not in both."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half, unflatten
from optserve_server.tasks.networks import Size


@dataclass(frozen=True)
class MatrixFactorisation:
    """f(U, V) = mean of (UVᵀ − M)²; M is such a product of its own factors, with `noise` on every entry.

    The entries of all factors are normal with variance rank^−½, so that those of a product have variance 1.
    """

    name: ClassVar[str] = "matrix-factorisation"
    description: ClassVar[str] = (
        "mean squared error of UVᵀ against a random matrix of the same rank, with noise on its entries"
    )

    rows: Size = 20
    columns: Size = 20
    rank: Size = 4
    noise: Annotated[float, Ge(0), Le(100)] = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The two factors."""
        return {"U": (self.rows, self.rank), "V": (self.columns, self.rank)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """M `[tasks, rows, columns]`, and its left factor, the first entry of which tells the half."""
        left = in_half(self._factor(generator, tasks, self.rows), split)
        right = self._factor(generator, tasks, self.columns)
        noise = torch.randn(tasks, self.rows, self.columns, generator=generator, device=generator.device)
        return {"M": left @ right.transpose(1, 2) + self.noise * noise, "left": left}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """U and V, drawn as the factors of M."""
        return self._factor(generator, tasks, self.rows + self.columns).flatten(1)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Nothing: f is deterministic."""
        return {}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f(U, V)."""
        tensors = unflatten(theta, self.shapes)
        return (tensors["U"] @ tensors["V"].T - task["M"]).square().mean()

    def _factor(self, generator: torch.Generator, tasks: int, rows: int) -> Tensor:
        normal = torch.randn(tasks, rows, self.rank, generator=generator, device=generator.device)
        return normal / math.sqrt(math.sqrt(self.rank))
