"""f(θ_t) and ∇_t of a group on a GPU, captured as a CUDA graph.

The kernels of a small task take less time than the host needs to launch them one by one. A graph of them is one launch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Evaluation = Callable[..., tuple[Tensor, Tensor]]
"""f(θ_t) of each task, and ∇_t: of θ_t, what else a group has, and the batch, one after another."""

_WARM_UPS = 3  # before a capture libraries have to have made their handles and workspaces


class Captured:
    """`evaluate` of tensors of the forms of `tensors`; it may not look at their numbers on the host.

    A graph reads and writes the same memory at every replay. So what it is called with is copied to where it reads, and
    results are copies, which the next call leaves alone.
    """

    def __init__(self, evaluate: Evaluation, tensors: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.no_grad():
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    evaluate(*self._inputs)
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = evaluate(*self._inputs)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The results of the same operations on these."""
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        self._graph.replay()
        losses, gradients = self._outputs
        return losses.clone(), gradients.clone()
