"""Between the coordinates `[…, n]` and the parameter tensors `[…, K]` whose coordinates stand one after another there.

Each tensor is a slice, so sums and copies are of slices: for the few tensors that an optimizee has that is many times
as fast as a scatter by index, forward and back, and the order of every sum is fixed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from optserve_server.optimizers.base import Shapes, sizes

_PIECE = 1 << 15
"""Numbers summed at once. PyTorch may share a longer sum out over threads, whose number would change its last bits."""


def sums(values: Tensor, shapes: Shapes) -> Tensor:
    """`[…, n]` → `[…, K]`: the sum over each tensor's coordinates."""
    return torch.stack([_sum(part) for part in torch.split(values, list(sizes(shapes)), dim=-1)], dim=-1)


def means(values: Tensor, shapes: Shapes) -> Tensor:
    """`[…, n]` → `[…, K]`: the mean over each tensor's coordinates."""
    return sums(values, shapes) / constants(sizes(shapes), values)


def spread(values: Tensor, shapes: Shapes) -> Tensor:
    """`[…, K]` → `[…, n]`: each tensor's value at all its coordinates."""
    lead = values.shape[:-1]
    parts = zip(torch.split(values, 1, dim=-1), sizes(shapes), strict=True)
    return torch.cat([part.expand(*lead, size) for part, size in parts], dim=-1)


def constants(numbers: Sequence[float], like: Tensor) -> Tensor:
    """The numbers as a tensor, of the dtype and on the device of `like`.

    They are filled in there and not copied from the host, so that a step may be captured in a CUDA graph.
    """
    return torch.cat([like.new_full((1,), number) for number in numbers])


def _sum(values: Tensor) -> Tensor:
    if values.shape[-1] <= _PIECE:
        return values.sum(dim=-1)
    return _sum(torch.stack([piece.sum(dim=-1) for piece in torch.split(values, _PIECE, dim=-1)], dim=-1))
