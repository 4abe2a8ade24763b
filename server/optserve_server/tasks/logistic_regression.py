"""Logistic regression, the convex problem of classification."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, unflatten
from optserve_server.tasks.datasets import FORMS, draw_rows, shared, table
from optserve_server.tasks.networks import initial_uniform, perceptron_shapes


@dataclass(frozen=True)
class LogisticRegression:
    """Cross-entropy of a linear model on all rows of the task, and the penalty l2 · ½‖θ‖².

    The rows of a task are drawn with replacement from those of its half, so that no two tasks are the same problem.
    """

    name: ClassVar[str] = "logistic-regression"
    description: ClassVar[str] = (
        "logistic regression with the penalty l2 · ½‖θ‖²: convex and without noise; each task has a sample of its own "
        "of the rows of one of scikit-learn's tables, two thirds of them to meta-train on, the others held out"
    )
    shares_rows: ClassVar[bool] = True

    data: Literal["breast-cancer", "iris", "wine"] = "breast-cancer"
    rows: Annotated[int, Ge(1), Le(10_000)] = 100
    l2: Annotated[float, Ge(0), Le(100)] = 0.001

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One layer: a weight for each class and feature, and a bias for each class."""
        form = FORMS[self.data]
        return perceptron_shapes([form.features, form.classes or 1])

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """Features `[tasks, rows, features]` and classes `[tasks, rows]`, drawn with replacement from the half."""
        features, targets = table(self.data, split)
        half = {"features": shared(features, generator, tasks), "targets": shared(targets, generator, tasks)}
        return draw_rows(generator, half, tasks, self.rows)

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`."""
        return initial_uniform(self.shapes, generator, tasks)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Nothing: f is deterministic."""
        return {}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the task's rows, and the penalty."""
        (weight, bias) = unflatten(theta, self.shapes).values()
        return cross_entropy(task["features"] @ weight.T + bias, task["targets"]) + self.l2 / 2 * theta.square().sum()
