"""Ill-conditioned quadratics with noise, the model of stochastic gradients of Schaul et al. 2013 (arXiv 1206.1106)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half


@dataclass(frozen=True)
class NoisyQuadratic:
    """f_t(θ) = scale · ½ (θ − c_t)ᵀH(θ − c_t), c_t ~ N(c, noise²I); c and θ_0 are standard normal.

    The eigenvalues of H fall geometrically from 1 to 1/condition_number, along random axes. With noise, the mean of f_t
    has its minimum at c and cannot fall below scale · noise² · tr(H)/2.
    """

    name: ClassVar[str] = "noisy-quadratic"
    description: ClassVar[str] = (
        "ill-conditioned quadratics: eigenvalues from 1 down to 1/condition_number along random axes, "
        "and a minimum that jumps about its place by `noise` at every step"
    )

    dimension: Annotated[int, Ge(1), Le(1000)] = 20
    condition_number: Annotated[float, Ge(1), Le(1e8)] = 100.0
    noise: Annotated[float, Ge(0), Le(100)] = 0.0
    scale: Annotated[float, Gt(0), Le(1e6)] = 1.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {"theta": (self.dimension,)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """H by its axes, the rows of `[tasks, d, d]`, and eigenvalues `[tasks, d]`; c `[tasks, d]` tells the half."""
        d, device = self.dimension, generator.device
        axes, _ = torch.linalg.qr(torch.randn(tasks, d, d, generator=generator, device=device))
        exponents = torch.linspace(0, -1, d, device=device)
        return {
            "axes": axes,
            "eigenvalues": (self.condition_number**exponents).expand(tasks, d),
            "minimum": in_half(torch.randn(tasks, d, generator=generator, device=device), split),
        }

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """θ_0 `[tasks, d]`."""
        return torch.randn(tasks, self.dimension, generator=generator, device=generator.device)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """c_t − c, `[tasks, d]`; nothing where there is no noise."""
        if not self.noise:
            return {}
        offset = torch.randn(tasks, self.dimension, generator=generator, device=generator.device)
        return {"offset": self.noise * offset.to(task_data["minimum"].dtype)}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f_t(θ)."""
        away = theta - task["minimum"] - batch["offset"] if batch else theta - task["minimum"]
        return self.scale / 2 * (task["eigenvalues"] * (task["axes"] @ away).square()).sum()
