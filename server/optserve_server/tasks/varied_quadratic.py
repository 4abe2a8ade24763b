"""Quadratics with spectra and scales of all kinds."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half


@dataclass(frozen=True)
class VariedQuadratic:
    """f_t(θ) = s · ½ (θ − c_t)ᵀH(θ − c_t), c_t ~ N(c, ν²I), each task with an s, a spectrum and a ν of its own.

    The condition number of H is log-uniform from 1 to 10⁴, its eigenvalues are spread evenly or unevenly between, along
    random axes or, in a third of the tasks, along the coordinates; s is log-uniform from 10⁻⁴ to 10⁴; ν is 0 for half
    of the tasks, else log-uniform from 0.01 to 1. In half of the tasks c is the farther away the flatter an axis is,
    ∝ λ^−p with p from 0 to ½, as in least squares.
    """

    name: ClassVar[str] = "varied-quadratic"
    description: ClassVar[str] = (
        "quadratics with spectra over four decades and losses over eight, along random axes or the coordinates, with "
        "noise and without, each task with its own"
    )

    dimension: Annotated[int, Ge(1), Le(1000)] = 20

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {"theta": (self.dimension,)}

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The axes, the rows of `[tasks, d, d]`; eigenvalues with their scale `[tasks, d]`; c `[tasks, d]`; ν."""
        d, device = self.dimension, generator.device

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.empty(tasks, *shape, device=device).uniform_(low, high, generator=generator)

        axes, _ = torch.linalg.qr(torch.randn(tasks, d, d, generator=generator, device=device))
        axes = torch.where(uniform(0, 1, 1, 1) < 1 / 3, torch.eye(d, device=device), axes)
        places = torch.linspace(0, 1, d, device=device) ** torch.exp(uniform(-1.5, 1.5, 1))
        scale, spectrum = 10 ** uniform(-4, 4, 1), 10 ** (-uniform(0, 4, 1) * places)
        power = uniform(-0.5, 0.5, 1).clamp(min=0)
        away = spectrum**-power * torch.randn(tasks, d, generator=generator, device=device)
        return {
            "axes": axes,
            "eigenvalues": scale * spectrum,
            "minimum": in_half((away.unsqueeze(1) @ axes).squeeze(1), split),
            "noise": torch.where(uniform(0, 1, 1) < 0.5, 10 ** uniform(-2, 0, 1), 0.0),
        }

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """θ_0 `[tasks, d]`, standard normal."""
        return torch.randn(tasks, self.dimension, generator=generator, device=generator.device)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """(c_t − c)/ν, `[tasks, d]`."""
        offset = torch.randn(tasks, self.dimension, generator=generator, device=generator.device)
        return {"offset": offset.to(task_data["minimum"].dtype)}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """f_t(θ)."""
        away = theta - task["minimum"] - task["noise"] * batch["offset"]
        return (task["eigenvalues"] * (task["axes"] @ away).square()).sum() / 2
