"""Small multilayer perceptrons that tell generated clusters apart."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half
from optserve_server.tasks.datasets import with_label_noise
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    HiddenSizes,
    InitialScale,
    Perceptron,
    Share,
    Size,
    initial_uniform,
)


@dataclass(frozen=True)
class ClustersMLP:
    """Cross-entropy of a perceptron on points around the centres of classes; each task has centres of its own.

    Centres are standard normal, points lie around them with deviation `spread`, and every step sees new ones. So
    nothing can be learned by heart, and where clusters overlap, no θ brings the loss to 0.
    """

    name: ClassVar[str] = "clusters-mlp"
    description: ClassVar[str] = (
        "cross-entropy of a small multilayer perceptron on generated clusters, new points at every step; "
        "each task has clusters of its own"
    )

    features: Size = 16
    classes: Annotated[int, Ge(2), Le(1024)] = 4
    spread: Annotated[float, Gt(0), Le(100)] = 1.0
    hidden_sizes: HiddenSizes = (16,)
    activation: Activation = "relu"
    batch_size: BatchSize = 64
    initial_scale: InitialScale = 1.0
    label_noise: Share = 0.0

    @property
    def perceptron(self) -> Perceptron:
        """f: classes told by a perceptron."""
        sizes = (self.features, *self.hidden_sizes, self.classes)
        return Perceptron(sizes, self.activation, "cross-entropy", "points", "labels")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """Centres `[tasks, classes, features]`, the first of which tells the half."""
        centres = torch.randn(tasks, self.classes, self.features, generator=generator, device=generator.device)
        return {"centres": in_half(centres, split)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """New points `[tasks, batch_size, features]` and their classes, some drawn at random."""
        centres, device = task_data["centres"], generator.device
        labels = torch.randint(self.classes, (tasks, self.batch_size), generator=generator, device=device)
        noise = torch.randn(tasks, self.batch_size, self.features, generator=generator, device=device)
        points = centres[torch.arange(tasks, device=device)[:, None], labels] + self.spread * noise
        return {"points": points, "labels": with_label_noise(labels, self.classes, self.label_noise, generator)}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the points."""
        return self.perceptron.loss(theta, batch)
