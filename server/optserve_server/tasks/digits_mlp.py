"""Small multilayer perceptrons on real digits: Andrychowicz et al. 2016, section 3.2, with scikit-learn's images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta
from optserve_server.tasks.datasets import draw_rows, shared, with_label_noise
from optserve_server.tasks.digits import CLASSES, PIXELS, digits
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    HiddenSizes,
    InitialScale,
    Perceptron,
    Share,
    initial_uniform,
)


@dataclass(frozen=True)
class DigitsMLP:
    """Cross-entropy of a perceptron 64 – hidden … – 10 on minibatches of digits, initialised as `torch.nn.Linear`."""

    name: ClassVar[str] = "digits-mlp"
    description: ClassVar[str] = (
        "cross-entropy of a small multilayer perceptron on minibatches of scikit-learn's 8 × 8 digits; "
        "1,000 images to meta-train on, 797 held out"
    )
    shares_rows: ClassVar[bool] = True

    hidden_sizes: HiddenSizes = (20,)
    activation: Activation = "sigmoid"
    batch_size: BatchSize = 128
    initial_scale: InitialScale = 1.0
    label_noise: Share = 0.0

    @property
    def perceptron(self) -> Perceptron:
        """f: digits told by a perceptron."""
        sizes = (PIXELS, *self.hidden_sizes, CLASSES)
        return Perceptron(sizes, self.activation, "cross-entropy", "images", "labels")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The images of the half, shared by all tasks: tasks differ in θ_0 and in the order of their minibatches."""
        images, labels = digits(split)
        return {"images": shared(images, generator, tasks), "labels": shared(labels, generator, tasks)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` images for each task, some with a label drawn at random."""
        batch = draw_rows(generator, task_data, tasks, self.batch_size)
        batch["labels"] = with_label_noise(batch["labels"], CLASSES, self.label_noise, generator)
        return batch

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the minibatch."""
        return self.perceptron.loss(theta, batch)
