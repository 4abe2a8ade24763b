"""Small multilayer perceptrons on the tables that scikit-learn ships."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, unflatten
from optserve_server.tasks.datasets import FORMS, DataSetName, draw_rows, shared, table
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    HiddenSizes,
    InitialScale,
    initial_uniform,
    perceptron,
    perceptron_shapes,
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
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        form = FORMS[self.data]
        return perceptron_shapes([form.features, *self.hidden_sizes, form.classes or 1])

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
        outputs = perceptron(unflatten(theta, self.shapes), batch["features"], self.activation)
        if FORMS[self.data].classes is None:
            return (outputs[:, 0] - batch["targets"]).square().mean()
        return cross_entropy(outputs, batch["targets"])
