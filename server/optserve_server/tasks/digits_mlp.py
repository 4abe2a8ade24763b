"""Small multilayer perceptrons on real digits: Andrychowicz et al. 2016, section 3.2, with scikit-learn's images."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le, Len
from torch import Tensor
from torch.nn.functional import cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, unflatten
from optserve_server.tasks.digits import digits

_PIXELS, _CLASSES = 64, 10
_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class DigitsMLP:
    """Cross-entropy of a perceptron 64 – hidden … – 10 on minibatches of digits, initialised as `torch.nn.Linear`."""

    name: ClassVar[str] = "digits-mlp"
    description: ClassVar[str] = (
        "cross-entropy of a small multilayer perceptron on minibatches of scikit-learn's 8 × 8 digits; "
        "1,000 images to meta-train on, 797 held out"
    )

    hidden_sizes: Annotated[tuple[Annotated[int, Ge(1), Le(1024)], ...], Len(0, 8)] = (20,)
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    batch_size: Annotated[int, Ge(1), Le(1000)] = 128

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights [out, in] and biases [out] of each layer, named as `torch.nn.Sequential` of `Linear`s would be."""
        sizes = [_PIXELS, *self.hidden_sizes, _CLASSES]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            shapes[f"{layer}.weight"] = (fan_out, fan_in)
            shapes[f"{layer}.bias"] = (fan_out,)
        return shapes

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """The images of the half, shared by all tasks: tasks differ in θ_0 and in the order of their minibatches."""
        images, labels = digits(split)
        return {"images": images.expand(tasks, -1, -1), "labels": labels.expand(tasks, -1)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """Weights and biases uniform in ±1/√(fan in), as `torch.nn.Linear` draws them."""
        parts = []
        fan_in = 1
        for shape in self.shapes.values():
            fan_in = shape[1] if len(shape) == 2 else fan_in
            bound = 1 / math.sqrt(fan_in)
            parts.append(torch.empty(tasks, math.prod(shape)).uniform_(-bound, bound, generator=generator))
        return torch.cat(parts, dim=1)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """`batch_size` images for each task, drawn with replacement."""
        images, labels = task_data["images"], task_data["labels"]
        chosen = torch.randint(images.shape[1], (tasks, self.batch_size), generator=generator)
        return {"images": images[0][chosen], "labels": labels[0][chosen]}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the minibatch."""
        return cross_entropy(self.logits(theta, batch["images"]), batch["labels"])

    def logits(self, theta: Theta, images: Tensor) -> Tensor:
        """The network's outputs, `[images, 10]`, for one flat θ."""
        tensors = list(unflatten(theta, self.shapes).values())
        activation = _ACTIVATIONS[self.activation]
        hidden = images
        for layer in range(0, len(tensors), 2):
            if layer:
                hidden = activation(hidden)
            hidden = hidden @ tensors[layer].T + tensors[layer + 1]
        return hidden
