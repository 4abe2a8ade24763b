"""The peer in plain PyTorch: `torch.nn.LSTMCell`s over all coordinates, an unrolled loop, `backward()`, Adam.

As a researcher would write it who knows PyTorch well: tasks batched by hand, one evaluation of f a step.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from optserve_server.tasks.digits import digits

P = 10.0


class Tasks(Protocol):
    """Many tasks at once."""

    def start(self) -> Tensor:
        """Draw the tasks; θ_0, `[tasks, n]`."""
        ...

    def losses(self, theta: Tensor) -> Tensor:
        """f(θ), `[tasks]`, on a fresh minibatch."""
        ...


class Quadratics:
    def __init__(self, tasks: int, dimension: int) -> None:
        self.tasks, self.dimension = tasks, dimension

    def start(self) -> Tensor:
        self.w = torch.randn(self.tasks, self.dimension, self.dimension)
        self.y = torch.randn(self.tasks, self.dimension)
        return torch.randn(self.tasks, self.dimension)

    def losses(self, theta: Tensor) -> Tensor:
        return (torch.bmm(self.w, theta.unsqueeze(2)).squeeze(2) - self.y).square().sum(dim=1)


class Perceptrons:
    """64 – hidden – 10 on the digits, with ReLU."""

    def __init__(self, tasks: int, hidden: int, batch_size: int) -> None:
        self.tasks, self.hidden, self.batch_size = tasks, hidden, batch_size
        self.images, self.labels = digits("train")
        self.sizes = [64 * hidden, hidden, hidden * 10, 10]

    def start(self) -> Tensor:
        bounds = [1 / 8, 1 / 8, 1 / math.sqrt(self.hidden), 1 / math.sqrt(self.hidden)]
        parts = [
            torch.empty(self.tasks, size).uniform_(-bound, bound)
            for size, bound in zip(self.sizes, bounds, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def losses(self, theta: Tensor) -> Tensor:
        chosen = torch.randint(len(self.images), (self.tasks, self.batch_size))
        w1, b1, w2, b2 = theta.split(self.sizes, dim=1)
        hidden = relu(torch.baddbmm(b1.unsqueeze(1), self.images[chosen], w1.view(self.tasks, 64, self.hidden)))
        logits = torch.baddbmm(b2.unsqueeze(1), hidden, w2.view(self.tasks, self.hidden, 10))
        losses = cross_entropy(logits.flatten(0, 1), self.labels[chosen].flatten(), reduction="none")
        return losses.view(self.tasks, self.batch_size).mean(dim=1)


class MetaTraining:
    """Σ_t f(θ_t) over windows of a trajectory, ∂∇_t/∂φ dropped."""

    def __init__(self, tasks: Tasks, *, window: int, horizon: int, hidden: int, learning_rate: float) -> None:
        self.tasks, self.window, self.horizon, self.hidden = tasks, window, horizon, hidden
        self.cells = nn.ModuleList([nn.LSTMCell(2, hidden), nn.LSTMCell(hidden, hidden)])
        self.output = nn.Linear(hidden, 1)
        self.phi = [*self.cells.parameters(), *self.output.parameters()]
        self.adam = torch.optim.Adam(self.phi, lr=learning_rate)
        self.step = horizon

    def outer_step(self) -> float:
        if self.step >= self.horizon:
            self.step, self.theta = 0, self.tasks.start()
            zeros = self.theta.new_zeros(self.theta.numel(), self.hidden)
            self.states = [(zeros, zeros) for _ in self.cells]
        theta, states, losses = self.theta.detach().requires_grad_(), self.states, []
        for _ in range(self.window):
            loss = self.tasks.losses(theta)
            (gradients,) = torch.autograd.grad(loss.sum(), theta, retain_graph=True)
            losses.append(loss)
            updates, states = self.step_lstm(gradients.flatten(), states)
            theta = theta + updates.view_as(theta)
        losses.append(self.tasks.losses(theta))
        meta_loss = torch.stack(losses[1:]).sum(dim=0).mean()
        self.adam.zero_grad()
        meta_loss.backward()
        nn.utils.clip_grad_norm_(self.phi, 1.0)
        self.adam.step()
        self.step += self.window
        self.theta, self.states = theta.detach(), [(h.detach(), c.detach()) for h, c in states]
        return meta_loss.item()

    def step_lstm(
        self, gradients: Tensor, states: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x, following = log_sign(gradients), []
        for cell, state in zip(self.cells, states, strict=True):
            following.append(cell(x, state))
            x = following[-1][0]
        return 0.1 * self.output(x).squeeze(1), following


def log_sign(gradients: Tensor) -> Tensor:
    size, smallest = gradients.abs(), math.exp(-P)
    logarithm = torch.where(size >= smallest, size.clamp(min=smallest).log() / P, -1.0)
    direction = torch.where(size >= smallest, gradients.sign(), gradients / smallest)
    return torch.stack((logarithm, direction), dim=1)
