"""A small convolutional network on real digits."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le, Len
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, unflatten
from optserve_server.tasks.datasets import draw_rows, shared
from optserve_server.tasks.digits import CLASSES, SIDE, digits
from optserve_server.tasks.networks import ACTIVATIONS, Activation, BatchSize, initial_uniform


@dataclass(frozen=True)
class DigitsConv:
    """Cross-entropy of a convolutional network on minibatches of digits.

    Each layer is a 3 × 3 convolution with a border of zeros, the activation, and the mean of 2 × 2; a linear layer
    follows the last.
    """

    name: ClassVar[str] = "digits-conv"
    description: ClassVar[str] = (
        "cross-entropy of a small convolutional network on minibatches of scikit-learn's 8 × 8 digits; "
        "1,000 images to meta-train on, 797 held out"
    )
    shares_rows: ClassVar[bool] = True

    channels: Annotated[tuple[Annotated[int, Ge(1), Le(128)], ...], Len(1, 3)] = (8, 16)
    activation: Activation = "relu"
    batch_size: BatchSize = 64

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Kernels [out, in, 3, 3] and biases [out] of each layer, then the linear layer's."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (before, after) in enumerate(pairwise([1, *self.channels])):
            shapes[f"{layer}.weight"] = (after, before, 3, 3)
            shapes[f"{layer}.bias"] = (after,)
        side = SIDE >> len(self.channels)
        shapes["output.weight"] = (CLASSES, self.channels[-1] * side * side)
        shapes["output.bias"] = (CLASSES,)
        return shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The images of the half, shared by all tasks: tasks differ in θ_0 and in the order of their minibatches."""
        images, labels = digits(split)
        return {"images": shared(images, generator, tasks), "labels": shared(labels, generator, tasks)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Conv2d` and `torch.nn.Linear`."""
        return initial_uniform(self.shapes, generator, tasks)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` images for each task."""
        return draw_rows(generator, task_data, tasks, self.batch_size)

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the minibatch."""
        tensors = unflatten(theta, self.shapes)
        hidden = batch["images"].reshape(-1, 1, SIDE, SIDE)
        for layer in range(len(self.channels)):
            hidden = conv2d(hidden, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], padding=1)
            hidden = avg_pool2d(ACTIVATIONS[self.activation](hidden), 2)
        logits = hidden.flatten(1) @ tensors["output.weight"].T + tensors["output.bias"]
        return cross_entropy(logits, batch["labels"])
