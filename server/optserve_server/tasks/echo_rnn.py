"""Recurrent networks in miniature, that echo what they have heard."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half, unflatten
from optserve_server.tasks.networks import BatchSize, initial_uniform

_HEARD = 2  # numbers at a time


@dataclass(frozen=True)
class EchoRNN:
    """Mean squared error of a recurrent network (Elman 1990) that is to say Σ_k tanh(A_k x_{t−k}) at t, k = 0 … 2.

    x_t are two standard normal numbers, new at every step; A, and the noise of what is to be echoed, are the task's.
    """

    name: ClassVar[str] = "echo-rnn"
    description: ClassVar[str] = (
        "mean squared error of a recurrent network in miniature that echoes the last three of its inputs; each task "
        "has an echo of its own"
    )

    hidden_size: Annotated[int, Ge(1), Le(256)] = 8
    length: Annotated[int, Ge(1), Le(64)] = 5
    batch_size: BatchSize = 8

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The network's tensors, and its linear readout's."""
        return {
            "input.weight": (self.hidden_size, _HEARD),
            "hidden.weight": (self.hidden_size, self.hidden_size),
            "hidden.bias": (self.hidden_size,),
            "output.weight": (1, self.hidden_size),
            "output.bias": (1,),
        }

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """A `[tasks, 3, 2]`, whose first entry tells the half, and the noise `[tasks, 1, 1]`."""
        echoes = torch.randn(tasks, 3, _HEARD, generator=generator, device=generator.device)
        noise = torch.empty(tasks, 1, 1, device=generator.device).uniform_(0, 0.2, generator=generator)
        return {"echoes": in_half(echoes, split), "noise": noise}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """As `torch.nn.Linear`."""
        return initial_uniform(self.shapes, generator, tasks)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Inputs `[tasks, length, batch_size, 2]` and echoes `[tasks, length, batch_size]`."""
        size = (tasks, self.length + 2, self.batch_size, _HEARD)
        precision = task_data["echoes"].dtype
        heard = torch.randn(size, generator=generator, device=generator.device).to(precision)
        echoes = torch.tanh(torch.einsum("tlbi,tki->tklb", heard, task_data["echoes"]))
        total = echoes[:, 0, 2:] + echoes[:, 1, 1:-1] + echoes[:, 2, :-2]
        noise = torch.randn(total.shape, generator=generator, device=generator.device).to(precision)
        return {"heard": heard[:, 2:], "echoes": total + task_data["noise"] * noise}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean squared error over the sequence."""
        tensors = unflatten(theta, self.shapes)
        from_inputs = batch["heard"] @ tensors["input.weight"].T + tensors["hidden.bias"]
        recurrent, readout = tensors["hidden.weight"].T, tensors["output.weight"][0]
        hidden, total = torch.zeros_like(from_inputs[0]), torch.zeros((), dtype=theta.dtype, device=theta.device)
        for step in range(self.length):
            hidden = torch.tanh(from_inputs[step] + hidden @ recurrent)
            error = hidden @ readout + tensors["output.bias"] - batch["echoes"][step]
            total = total + error.square().mean()
        return total / self.length
