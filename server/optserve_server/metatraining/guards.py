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

from optserve_server.metatraining.admission import LARGEST, admit


class Guard:
    """Watches the tasks of one group through one window of backpropagation.

    `finite`, `[tasks]`, is false for those that are no longer; `exploded` for those whose θ_t got a derivative that is
    not finite while the gradient was computed.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        self.finite = torch.ones(tasks, dtype=torch.bool, device=device)
        self.exploded = torch.zeros_like(self.finite)
        self._history: list[Tensor] = []

    def see(self, theta: Tensor, loss: Tensor, gradients: Tensor) -> Tensor:
        """Note which tasks are finite by θ_t, f(θ_t) and ∇_t; ∇_t as the optimizer may see it."""
        if all(map(_has_numbers_here, (theta, loss, gradients))):
            finite, shown = torch.empty_like(self.finite), torch.empty_like(gradients)
            admit(*(array.numpy() for array in (theta, loss, gradients, self.finite, finite, shown)))
            self._follow(finite)
            return shown
        seen = torch.cat((loss.detach().unsqueeze(1), theta.detach(), gradients.detach()), dim=1)
        self.check(theta, seen.abs().amax(dim=1))
        return self.shown(gradients)

    def check(self, theta: Tensor, loss: Tensor) -> None:
        """Note which tasks are finite by one more loss, `[tasks]`."""
        self._follow(self.finite & (loss.detach().abs() < LARGEST))
        if theta.requires_grad:
            theta.register_hook(self._contain)  # type: ignore[no-untyped-call]

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

    def _follow(self, finite: Tensor) -> None:
        self.finite = finite
        self._history.append(finite)

    def _contain(self, gradient: Tensor) -> Tensor:
        finite = vector_norm(gradient, math.inf, dim=1) < math.inf
        self.exploded = self.exploded | ~finite
        return gradient.where(finite.unsqueeze(1), 0.0)


def _has_numbers_here(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.requires_grad
    return plain and tensor.dtype == torch.float32 and tensor.is_contiguous()
