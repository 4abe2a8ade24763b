"""Convolutional networks in miniature, on generated images."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half, unflatten
from optserve_server.tasks.networks import ACTIVATIONS, Activation, BatchSize, initial_uniform

SIDE = 6


@dataclass(frozen=True)
class PatternsConv:
    """Cross-entropy of a convolution 3 × 3, pooling by 2 and a linear layer, on images 6 × 6 of random patterns.

    Each class is a pattern, which is shown as it is or moved by one pixel up, left or both (what goes out comes in on
    the other side), under noise whose size is the task's.
    """

    name: ClassVar[str] = "patterns-conv"
    description: ClassVar[str] = (
        "cross-entropy of a convolutional network in miniature on generated patterns moved at random"
    )

    channels: Annotated[int, Ge(1), Le(64)] = 4
    classes: Annotated[int, Ge(2), Le(64)] = 4
    activation: Activation = "relu"
    batch_size: BatchSize = 8

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The convolution, and the linear layer."""
        outputs = self.channels * (SIDE // 2) ** 2
        return {
            "0.weight": (self.channels, 1, 3, 3),
            "0.bias": (self.channels,),
            "output.weight": (self.classes, outputs),
            "output.bias": (self.classes,),
        }

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """Patterns `[tasks, classes, 6, 6]`, the first number telling the half, and the noise `[tasks, 1, 1]`."""
        device = generator.device
        patterns = torch.randn(tasks, self.classes, SIDE, SIDE, generator=generator, device=device)
        noise = torch.empty(tasks, 1, 1, device=device).uniform_(0.1, 1.2, generator=generator)
        return {"patterns": in_half(patterns, split), "noise": noise}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Conv2d` and `torch.nn.Linear`."""
        return initial_uniform(self.shapes, generator, tasks)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Images `[tasks, batch_size, 36]` and their classes `[tasks, batch_size]`."""
        device, size = generator.device, (tasks, self.batch_size)
        labels = torch.randint(self.classes, size, generator=generator, device=device)
        shifts = torch.randint(2, (2, *size, 1, 1), generator=generator, device=device)
        places = torch.arange(SIDE, device=device)
        down, right = (places[:, None] + shifts[0]) % SIDE, (places[None, :] + shifts[1]) % SIDE
        tasks_of = torch.arange(tasks, device=device)[:, None, None, None]
        images = task_data["patterns"][tasks_of, labels[:, :, None, None], down, right]
        noise = torch.randn(*size, SIDE * SIDE, generator=generator, device=device)
        return {"images": images.flatten(2) + task_data["noise"] * noise, "labels": labels}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy on the minibatch."""
        tensors = unflatten(theta, self.shapes)
        images = batch["images"].reshape(-1, 1, SIDE, SIDE)
        hidden = ACTIVATIONS[self.activation](conv2d(images, tensors["0.weight"], tensors["0.bias"], padding=1))
        logits = avg_pool2d(hidden, 2).flatten(1) @ tensors["output.weight"].T + tensors["output.bias"]
        return cross_entropy(logits, batch["labels"])
