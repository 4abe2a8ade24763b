"""Adafactor's second moments (Shazeer & Stern 2018, arXiv 1804.04235): of a matrix, the means of its rows and columns.

A tensor of more than two dimensions is a stack of matrices along its two largest. One of fewer is not factored: the
square of each element stands in the place of the rows, and there are no columns.

All functions are of one tensor, whose elements are the last dimension, under any leading ones.
"""

import torch
from torch import Tensor

Shape = tuple[int, ...]

_LEAST_SHARE = 1e-12  # of a row's mean square in that of all rows; what is below counts as that


def row_shape(shape: Shape) -> Shape:
    """The tensor's shape with one row for each of its means."""
    return shape if len(shape) < 2 else _with_one(shape, _axes(shape)[1])


def column_shape(shape: Shape) -> Shape:
    """The tensor's shape with one column for each of its means; nothing where it is not factored."""
    return (0,) if len(shape) < 2 else _with_one(shape, _axes(shape)[0])


def row_means(squares: Tensor, shape: Shape) -> Tensor:
    """`[…, elements]` → `[…, rows]`."""
    return squares if len(shape) < 2 else _means(squares, shape, _axes(shape)[1])


def column_means(squares: Tensor, shape: Shape) -> Tensor:
    """`[…, elements]` → `[…, columns]`."""
    return squares[..., :0] if len(shape) < 2 else _means(squares, shape, _axes(shape)[0])


def at_elements(rows: Tensor, columns: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """The means of each element's row and column, `[…, elements]`; its own twice where the tensor is not factored."""
    if len(shape) < 2:
        return rows, rows
    return _expand(rows, row_shape(shape), shape), _expand(columns, column_shape(shape), shape)


def inverse_roots(rows: Tensor, columns: Tensor, shape: Shape, epsilon: float) -> Tensor:
    """1/√v̂ of each element, v̂ = row · column/mean of the rows (algorithm 4), `[…, elements]`."""
    if len(shape) < 2:
        return torch.rsqrt(rows + epsilon**2)
    stacked = _shaped(rows, row_shape(shape))
    shares = (stacked + epsilon**2) / (stacked.mean(dim=_axes(shape)[0], keepdim=True) + epsilon**2)
    of_rows = torch.rsqrt(shares.clamp(min=_LEAST_SHARE)).flatten(-len(shape))
    of_rows, of_columns = at_elements(of_rows, torch.rsqrt(columns + epsilon**2), shape)
    return of_rows * of_columns


def _axes(shape: Shape) -> tuple[int, int]:
    """The two largest dimensions, counted from the end: the one along which rows stand, and the one along columns."""
    largest = sorted(range(-len(shape), 0), key=lambda axis: shape[axis])[-2:]
    return min(largest), max(largest)


def _with_one(shape: Shape, axis: int) -> Shape:
    kept = list(shape)
    kept[axis] = 1
    return tuple(kept)


def _means(squares: Tensor, shape: Shape, axis: int) -> Tensor:
    return _shaped(squares, shape).mean(dim=axis, keepdim=True).flatten(-len(shape))


def _expand(means: Tensor, kept: Shape, shape: Shape) -> Tensor:
    return _shaped(means, kept).expand(*means.shape[:-1], *shape).flatten(-len(shape))


def _shaped(values: Tensor, shape: Shape) -> Tensor:
    return values.reshape(*values.shape[:-1], *shape)
