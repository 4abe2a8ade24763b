"""Between the coordinates `[…, n]` and the parameter tensors `[…, K]` whose coordinates stand one after another there.

Coordinates are gone through in pieces that fit in a processor's cache. Each tensor is a slice of one piece or of
several, so sums and copies are of slices: for the few tensors that an optimizee has that is many times as fast as a
scatter by index, forward and back. And the order of every sum is fixed, whatever the number of threads.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers.base import Shapes, sizes

PIECE = 1 << 14
"""Coordinates of a piece, at most. PyTorch would share sums of twice as many out over threads."""


class Piece(NamedTuple):
    """The coordinates from `start` to `stop`: `counts` of the tensor `first` and of those behind it."""

    start: int
    stop: int
    first: int
    counts: tuple[int, ...]

    def of(self, values: Tensor) -> Tensor:
        """`[…, n]` → `[…, stop − start]`: the piece of what coordinates have."""
        return values[..., self.start : self.stop]

    def spread(self, values: Tensor) -> Tensor:
        """`[…, K]` → `[…, stop − start]`: at each coordinate what its tensor has."""
        lead = values.shape[:-1]
        columns = torch.split(values[..., self.first : self.first + len(self.counts)], 1, dim=-1)
        return joined([column.expand(*lead, count) for column, count in zip(columns, self.counts, strict=True)])

    def sums(self, values: Tensor) -> Tensor:
        """`[…, stop − start]` → the sum over each tensor's coordinates in the piece, `[…, counts]`."""
        return torch.stack([part.sum(dim=-1) for part in torch.split(values, list(self.counts), dim=-1)], dim=-1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def pieces(shapes: Shapes) -> tuple[Piece, ...]:
    """All coordinates of tensors of these shapes, in pieces."""
    return _pieces(shapes)


@lru_cache(maxsize=64)
def _pieces(shapes: Shapes) -> tuple[Piece, ...]:
    bounds = list(accumulate(sizes(shapes), initial=0))
    found = []
    for start in range(0, bounds[-1], PIECE):
        stop = min(start + PIECE, bounds[-1])
        first, last = bisect_right(bounds, start) - 1, bisect_left(bounds, stop)
        edges = [start, *bounds[first + 1 : last], stop]
        found.append(Piece(start, stop, first, tuple(b - a for a, b in pairwise(edges))))
    return tuple(found)


def over_tensors(shapes: Shapes, terms: Callable[[Piece], Tensor]) -> Tensor:
    """The sums over each tensor's coordinates, `[…, K]`, of what `terms` makes of a piece, `[…, stop − start]`."""
    return total(shapes, [piece.sums(terms(piece)) for piece in pieces(shapes)])


def total(shapes: Shapes, partial: Sequence[Tensor]) -> Tensor:
    """The sums over tensors, `[…, K]`, from those of all pieces."""
    if len(partial) == 1:
        return partial[0]
    columns: list[list[Tensor]] = [[] for _ in shapes]
    for piece, sums in zip(pieces(shapes), partial, strict=True):
        for tensor, column in enumerate(sums.unbind(-1), piece.first):
            columns[tensor].append(column)
    return torch.stack([torch.stack(column, dim=-1).sum(dim=-1) for column in columns], dim=-1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What all pieces have, one after another; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def constants(numbers: Sequence[float], like: Tensor) -> Tensor:
    """The numbers as a tensor, of the dtype and on the device of `like`.

    They are filled in there and not copied from the host, so that a step may be captured in a CUDA graph.
    """
    return torch.cat([like.new_full((1,), number) for number in numbers])
