"""Small multilayer perceptrons on generated data of many kinds."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
    Share,
    Size,
    initial_uniform,
)

Data = Literal["clusters", "teacher-classes", "teacher-values", "autoencoder"]
_TEACHER_SIZE, _LATENT_SIZE = 8, 3


@dataclass(frozen=True)
class SyntheticMLP:
    """f of a perceptron on data that each task generates in a way of its own.

    `clusters`: classes lie around normal centres, `teacher-classes` and `teacher-values`: what the largest output, or
    the outputs, of a random perceptron are; `autoencoder`: the inputs themselves, made of a few hidden numbers. How far
    clusters are apart, how steep a teacher is, how noisy, and how sparse the inputs are, is drawn for each task.
    Features are correlated: mixed by a matrix whose singular values spread over up to `correlation` decades. Then they
    are multiplied by factors whose logarithm has the deviation `ill_scaling`. With `rows`, a task has so many rows and
    no more, else there are new ones at every step. Up to the share `label_noise` of classes are wrong.
    """

    name: ClassVar[str] = "synthetic-mlp"
    description: ClassVar[str] = (
        "a small multilayer perceptron on generated data: clusters, random teachers of classes and of values, or an "
        "autoencoder, each task with a difficulty, a noise and a scaling of its own"
    )

    data: Data = "clusters"
    features: Size = 12
    outputs: Annotated[int, Ge(1), Le(64)] = 4
    hidden_sizes: HiddenSizes = (12,)
    activation: Activation = "relu"
    normalised: bool = False
    batch_size: BatchSize = 16
    rows: Annotated[int, Ge(0), Le(10_000)] = 0
    initial_scale: InitialScale = 1.0
    correlation: Annotated[float, Ge(0), Le(5)] = 0.0
    ill_scaling: Annotated[float, Ge(0), Le(5)] = 0.0
    label_noise: Share = 0.0

    def __post_init__(self) -> None:
        if self.outputs < 2 and self.has_classes:
            raise ValueError(f"outputs is {self.outputs}, but {self.data} have at least 2 classes")

    @property
    def has_classes(self) -> bool:
        """Whether the targets are classes."""
        return self.data in ("clusters", "teacher-classes")

    @property
    def perceptron(self) -> Perceptron:
        """f."""
        outputs = self.features if self.data == "autoencoder" else self.outputs
        sizes = (self.features, *self.hidden_sizes, outputs)
        error: Literal["cross-entropy", "squared-error"] = "cross-entropy" if self.has_classes else "squared-error"
        return Perceptron(sizes, self.activation, error, "inputs", "targets", self.normalised)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """What the rows are drawn from, or the `rows` themselves; the first of the `scales` tells the half."""
        source = self._source(generator, tasks, split)
        if not self.rows:
            return source
        return {"scales": source["scales"], **self._draw(generator, source, tasks, self.rows)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Inputs `[tasks, batch_size, features]` and targets, classes `[tasks, batch_size]` or `[…, outputs]`."""
        if self.rows:
            return _chosen(generator, task_data, tasks, self.batch_size)
        return self._draw(generator, task_data, tasks, self.batch_size)

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """The mean error on the minibatch."""
        return self.perceptron.loss(theta, batch)

    def _source(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        def normal(*shape: int) -> Tensor:
            return torch.randn(tasks, *shape, generator=generator, device=generator.device)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(tasks, 1, 1, device=generator.device).uniform_(low, high, generator=generator)

        scales = torch.exp(self.ill_scaling * normal(1, self.features))
        sparse = uniform(0, 1) < 1 / 3
        source = {
            "scales": in_half(scales, split),
            "present": torch.where(sparse, uniform(0.1, 0.5), 1.0),
            "noise": torch.where(uniform(0, 1) < 0.5, torch.exp(uniform(-5, -0.5)), 0.0),
            "wrong": self.label_noise * uniform(0, 1),
        }
        if self.correlation:
            source["mixing"] = _mixing(normal(2, self.features, self.features), self.correlation * uniform(0, 1))
        if self.data == "clusters":
            return source | {"centres": torch.exp(uniform(-1, 1)) * normal(self.outputs, self.features)}
        if self.data == "autoencoder":
            return source | {"maps": normal(_LATENT_SIZE, self.features)}
        steep = torch.exp(uniform(-1, 1)) / math.sqrt(self.features)
        return source | {
            "first": steep * normal(self.features, _TEACHER_SIZE),
            "second": normal(_TEACHER_SIZE, self.outputs) / math.sqrt(_TEACHER_SIZE),
        }

    def _draw(self, generator: torch.Generator, source: TaskData, tasks: int, rows: int) -> Batch:
        precision = source["scales"].dtype

        def normal(columns: int) -> Tensor:
            return torch.randn(tasks, rows, columns, generator=generator, device=generator.device).to(precision)

        def uniform(columns: int) -> Tensor:
            return torch.rand(tasks, rows, columns, generator=generator, device=generator.device)

        points, targets = self._points(generator, source, normal(self.features), normal(_LATENT_SIZE))
        points = torch.where(uniform(self.features) < source["present"], points, 0.0)
        inputs = source["scales"] * (points @ source["mixing"] if self.correlation else points)
        if self.data == "autoencoder":
            return {"inputs": inputs, "targets": inputs}
        if self.data != "clusters":
            values = torch.tanh(points @ source["first"]) @ source["second"]
            values = values + source["noise"] * normal(self.outputs)
            targets = values.argmax(dim=2) if self.has_classes else values
        if self.label_noise and self.has_classes:
            others = torch.randint(self.outputs, (tasks, rows), generator=generator, device=generator.device)
            targets = torch.where(uniform(1)[:, :, 0] < source["wrong"][:, :, 0], others, targets)
        return {"inputs": inputs, "targets": targets}

    def _points(
        self, generator: torch.Generator, source: TaskData, normal: Tensor, latent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The inputs before they are scaled, and their classes, where these come first."""
        if self.data == "autoencoder":
            return torch.tanh(latent @ source["maps"]) + source["noise"] * normal, normal
        if self.data != "clusters":
            return normal, normal
        labels = torch.randint(self.outputs, normal.shape[:2], generator=generator, device=generator.device)
        tasks_of = torch.arange(len(labels), device=generator.device)[:, None]
        return normal + source["centres"][tasks_of, labels], labels


def _mixing(normal: Tensor, decades: Tensor) -> Tensor:
    """Random matrices `[tasks, n, n]` with columns of norm 1, from normal numbers `[tasks, 2, n, n]`.

    Before its columns are made equally long, the singular values of one fall over so many `decades`, `[tasks, 1, 1]`.
    """
    axes: Tensor = torch.linalg.qr(normal).Q
    first, second = axes.unbind(1)
    falling = 10 ** (-decades * torch.linspace(0, 1, first.shape[1], device=normal.device))
    mixed = (first * falling) @ second
    return mixed / mixed.square().sum(dim=1, keepdim=True).sqrt()


def _chosen(generator: torch.Generator, data: TaskData, tasks: int, count: int) -> Batch:
    """`count` of each task's own rows, drawn with replacement."""
    available = data["inputs"].shape[1]
    chosen = torch.randint(available, (tasks, count), generator=generator, device=generator.device)
    tasks_of = torch.arange(tasks, device=generator.device)[:, None]
    return {name: data[name][tasks_of, chosen] for name in ("inputs", "targets")}
