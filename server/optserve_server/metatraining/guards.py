"""Guards: one trajectory that diverges must not spoil the meta-gradient of the others.

All tasks of a group share φ, and 0 · ∞ is not a number: a task whose loss overflows would turn the whole of ∇_φ into
NaN, even if its meta-loss were left out of the sum. So the optimizer is shown zeros in its place, and what flows back
to its θ_t from the overflown f is stopped there.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import vector_norm

LARGEST = 1e15
"""A trajectory whose loss, gradient or θ grows beyond this counts as not finite: in float32 its square soon is not."""


class Guard:
    """Watches the tasks of one group through one window of backpropagation.

    `finite`, `[tasks]`, is false for those that are no longer; `exploded` for those whose θ_t got a derivative that is
    not finite while the gradient was computed.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        self.finite = torch.ones(tasks, dtype=torch.bool, device=device)
        self.exploded = torch.zeros_like(self.finite)
        self._history: list[Tensor] = []

    def see(self, theta: Tensor, loss: Tensor, gradients: Tensor) -> None:
        """Note which tasks are finite by θ_t, f(θ_t) and ∇_t."""
        seen = torch.cat((loss.detach().unsqueeze(1), theta.detach(), gradients.detach()), dim=1)
        self._note(theta, seen.abs().amax(dim=1))

    def check(self, theta: Tensor, loss: Tensor) -> None:
        """Note which tasks are finite by one more loss, `[tasks]`."""
        self._note(theta, loss.detach().abs())

    def shown(self, of_tasks: Tensor) -> Tensor:
        """What the optimizer may see of something that tasks have, `[tasks, …]`: zeros where one is not finite."""
        return of_tasks.where(self.finite.view(-1, *[1] * (of_tasks.dim() - 1)), 0.0)

    def marked(self, losses: Tensor) -> Tensor:
        """The losses after each step, `[steps, tasks]`, but infinite from where on a task is not finite."""
        return losses.where(torch.stack(self._history[1:]), math.inf)

    def gradients(self, meta_losses: Tensor, phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """∇_φ of the mean meta-loss, `[tasks]`; a task that is not finite, or whose derivative is not, adds zero."""
        while True:
            total = meta_losses.where(self.finite, 0.0).sum() / len(meta_losses)
            gradients = torch.autograd.grad(total, list(phi.values()), retain_graph=True)
            exploded = self.exploded & self.finite
            if not exploded.any():
                return dict(zip(phi, gradients, strict=True))
            self.finite = self.finite & ~exploded

    def _note(self, theta: Tensor, largest: Tensor) -> None:
        self.finite = self.finite & (largest < LARGEST)
        self._history.append(self.finite)
        if theta.requires_grad:
            theta.register_hook(self._contain)  # type: ignore[no-untyped-call]

    def _contain(self, gradient: Tensor) -> Tensor:
        finite = vector_norm(gradient, math.inf, dim=1) < math.inf
        self.exploded = self.exploded | ~finite
        return gradient.where(finite.unsqueeze(1), 0.0)
