"""The classical test functions of two variables, turned and moved."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half

FunctionName = Literal["ackley", "beale", "rastrigin", "rosenbrock"]


def ackley(x: Tensor) -> Tensor:
    """Ackley 1987: many small basins in a wide funnel. The root is smooth at its minimum, 0 at (0, 0)."""
    radius = (x.square().mean() + 1e-16).sqrt()
    return 20 + math.e - 20 * torch.exp(-0.2 * radius) - torch.exp(torch.cos(2 * math.pi * x).mean())


def beale(x: Tensor) -> Tensor:
    """Beale 1958: a flat valley between steep walls. Minimum 0 at (3, ½)."""
    a, b = x[0], x[1]
    return (1.5 - a + a * b).square() + (2.25 - a + a * b**2).square() + (2.625 - a + a * b**3).square()


def rastrigin(x: Tensor) -> Tensor:
    """Rastrigin 1974: a bowl full of basins. Minimum 0 at (0, 0)."""
    return (x.square() - 10 * torch.cos(2 * math.pi * x) + 10).sum()


def rosenbrock(x: Tensor) -> Tensor:
    """Rosenbrock 1960: a long curved valley. Minimum 0 at (1, 1)."""
    return 100 * (x[1] - x[0].square()).square() + (1 - x[0]).square()


class Landscape(NamedTuple):
    """A function F, where its minimum 0 lies, and from how far away it is searched for."""

    value: Callable[[Tensor], Tensor]
    minimum: tuple[float, float]
    reach: float


FUNCTIONS: dict[FunctionName, Landscape] = {
    "ackley": Landscape(ackley, (0.0, 0.0), 4.0),
    "beale": Landscape(beale, (3.0, 0.5), 2.0),
    "rastrigin": Landscape(rastrigin, (0.0, 0.0), 4.0),
    "rosenbrock": Landscape(rosenbrock, (1.0, 1.0), 2.0),
}


@dataclass(frozen=True)
class Classic2D:
    """f(θ) = F(x* + R(θ − c)): F turned about its minimum x* by a random angle, and the minimum moved to c ~ N(0, I).

    θ_0 is uniform in the square of ± `reach`.
    """

    name: ClassVar[str] = "classic-2d"
    description: ClassVar[str] = (
        "a classical function of two variables, each task turned by a random angle and moved: "
        "Ackley's, Beale's, Rastrigin's or Rosenbrock's"
    )

    function: FunctionName = "rosenbrock"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A point of the plane."""
        return {"theta": (2,)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """R `[tasks, 2, 2]` and c `[tasks, 2]`, which tells the half."""
        angle = 2 * math.pi * torch.rand(tasks, generator=generator, device=generator.device)
        cos, sin = angle.cos(), angle.sin()
        return {
            "rotation": torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1),
            "minimum": in_half(torch.randn(tasks, 2, generator=generator, device=generator.device), split),
        }

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """θ_0 `[tasks, 2]`."""
        reach = FUNCTIONS[self.function].reach
        return torch.empty(tasks, 2, device=generator.device).uniform_(-reach, reach, generator=generator)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Nothing: f is deterministic."""
        return {}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f(θ)."""
        landscape = FUNCTIONS[self.function]
        away = task["rotation"] @ (theta - task["minimum"])
        return landscape.value(torch.stack([away[0] + landscape.minimum[0], away[1] + landscape.minimum[1]]))
