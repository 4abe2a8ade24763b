"""Small multilayer perceptrons on the tables that scikit-learn ships."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta
from optserve_server.tasks.datasets import FORMS, DataSetName, draw_rows, shared, table
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    Error,
    HiddenSizes,
    InitialScale,
    Perceptron,
    initial_uniform,
)


@dataclass(frozen=True)
class TabularMLP:
    """Cross-entropy of a perceptron on minibatches of a table; mean squared error for the regression, diabetes."""

    name: ClassVar[str] = "tabular-mlp"
    description: ClassVar[str] = (
        "cross-entropy (diabetes: mean squared error) of a small multilayer perceptron on minibatches of one of "
        "scikit-learn's tables; two thirds of the rows to meta-train on, the others held out"
    )
    shares_rows: ClassVar[bool] = True

    data: DataSetName = "breast-cancer"
    hidden_sizes: HiddenSizes = (16,)
    activation: Activation = "relu"
    batch_size: BatchSize = 32
    initial_scale: InitialScale = 1.0

    @property
    def perceptron(self) -> Perceptron:
        """f: classes told or numbers guessed by a perceptron."""
        form = FORMS[self.data]
        sizes = (form.features, *self.hidden_sizes, form.classes or 1)
        error: Error = "cross-entropy" if form.classes else "squared-error"
        return Perceptron(sizes, self.activation, error, "features", "targets")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The rows of the half, shared by all tasks: tasks differ in θ_0 and in the order of their minibatches."""
        features, targets = table(self.data, split)
        return {"features": shared(features, generator, tasks), "targets": shared(targets, generator, tasks)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` rows for each task."""
        return draw_rows(generator, task_data, tasks, self.batch_size)

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """The mean error on the minibatch."""
        return self.perceptron.loss(theta, batch)
