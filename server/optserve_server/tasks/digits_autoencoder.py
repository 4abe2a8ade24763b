"""Small autoencoders of real digits, which squeeze an image through a narrow layer."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Len
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta
from optserve_server.tasks.datasets import draw_rows, shared
from optserve_server.tasks.digits import PIXELS, digits
from optserve_server.tasks.networks import (
    Activation,
    BatchSize,
    InitialScale,
    Perceptron,
    Size,
    initial_uniform,
)


@dataclass(frozen=True)
class DigitsAutoencoder:
    """Mean squared error, per pixel, of digits behind an autoencoder; the decoder mirrors the encoder.

    The encoder has the sizes 64 – hidden … ; the last of `hidden_sizes` is the code's. Outputs are linear.
    """

    name: ClassVar[str] = "digits-autoencoder"
    description: ClassVar[str] = (
        "mean squared error of a small autoencoder on minibatches of scikit-learn's 8 × 8 digits; "
        "1,000 images to meta-train on, 797 held out"
    )
    shares_rows: ClassVar[bool] = True

    hidden_sizes: Annotated[tuple[Size, ...], Len(1, 4)] = (32, 8)
    activation: Activation = "tanh"
    batch_size: BatchSize = 64
    initial_scale: InitialScale = 1.0

    @property
    def perceptron(self) -> Perceptron:
        """f: images behind a perceptron."""
        sizes = (PIXELS, *self.hidden_sizes, *self.hidden_sizes[-2::-1], PIXELS)
        return Perceptron(sizes, self.activation, "squared-error", "images", "images")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights and biases of each layer, the encoder's first."""
        return self.perceptron.shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The images of the half, shared by all tasks: tasks differ in θ_0 and in the order of their minibatches."""
        images, _ = digits(split)
        return {"images": shared(images, generator, tasks)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`, times `initial_scale`."""
        return initial_uniform(self.shapes, generator, tasks, self.initial_scale)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` images for each task."""
        return draw_rows(generator, task_data, tasks, self.batch_size)

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean squared error of the pixels on the minibatch."""
        return self.perceptron.loss(theta, batch)
