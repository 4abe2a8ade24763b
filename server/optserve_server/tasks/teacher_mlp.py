"""Small multilayer perceptrons that learn what a random perceptron does."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    HiddenSizes,
    InitialScale,
    Perceptron,
    Size,
    initial_uniform,
)


@dataclass(frozen=True)
class TeacherMLP:
    """Mean squared error of a perceptron against a random one, y(x) = v · tanh(Wx) + noise; each task has its own.

    The entries of x are standard normal, and new at every step; those of W have variance 1/features and those of v
    1/teacher_size, so that y is of order 1. With noise no θ brings the mean loss below noise².
    """

    name: ClassVar[str] = "teacher-mlp"
    description: ClassVar[str] = (
        "mean squared error of a small multilayer perceptron that imitates a random one, new inputs at every step; "
        "each task has a teacher of its own"
    )

    features: Size = 8
    teacher_size: Size = 8
    noise: Annotated[float, Ge(0), Le(100)] = 0.0
    hidden_sizes: HiddenSizes = (16,)
    activation: Activation = "tanh"
    batch_size: BatchSize = 64
    initial_scale: InitialScale = 1.0

    @property
    def perceptron(self) -> Perceptron:
        """f: the teacher's output guessed by a perceptron."""
        sizes = (self.features, *self.hidden_sizes, 1)
        return Perceptron(sizes, self.activation, "squared-error", "inputs", "targets")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """W `[tasks, teacher_size, features]`, whose first entry tells the half, and v `[tasks, teacher_size]`."""
        size, device = self.teacher_size, generator.device
        w = torch.randn(tasks, size, self.features, generator=generator, device=device) / self.features**0.5
        v = torch.randn(tasks, size, generator=generator, device=device) / size**0.5
        return {"W": in_half(w, split), "v": v}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """New inputs `[tasks, batch_size, features]` and the teacher's outputs `[tasks, batch_size]`."""
        w, v = task_data["W"], task_data["v"]
        rows = torch.randn(tasks, self.batch_size, self.features + 1, generator=generator, device=generator.device)
        inputs, noise = rows.to(w.dtype).tensor_split([self.features], dim=2)
        outputs = torch.tanh(inputs @ w.transpose(1, 2)) @ v[:, :, None]
        return {"inputs": inputs, "targets": (outputs + self.noise * noise)[:, :, 0]}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean squared error on the inputs."""
        return self.perceptron.loss(theta, batch)
