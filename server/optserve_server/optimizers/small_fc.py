"""`small_fc` of “Practical tradeoffs between memory, compute, and performance in learned optimizers” (Metz et al. 2022,
arXiv 2203.11860): a tiny network on momenta and on Adafactor's factored second moments.

Three things are otherwise than there. The parameters' values are no input, for a loop keeps them to itself. Second
moments are seen by their roots, so that float32 holds the squares of all inputs for gradients from 1e−7 to 1e10. The
decays are constants.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers import factored
from optserve_server.optimizers.base import HiddenState, Observations, Phi, Shapes, Updates, sizes
from optserve_server.optimizers.hyperparameters import require_range
from optserve_server.optimizers.layers import linear
from optserve_server.optimizers.segments import Piece, constants, joined, pieces, total

DECAYS = (0.9, 0.99, 0.999)  # of the momenta, and of the factored second moments
SQUARE_DECAY = 0.999
TIMESCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # steps
INPUTS = 1 + 3 + 1 + 3 + 1 + 6 * 3  # without the time
EPSILON = 1e-12  # within roots; float32 holds the inverse of its cube, which is their derivative at 0
LARGEST = 1e15  # a gradient is cut to this: sums of the squares of larger ones would not be finite in float32
LARGEST_INPUT = 10.0  # an input is cut to this, in units of its root mean square over the tensor
LARGEST_EXPONENT = 10.0


@dataclass(frozen=True)
class SmallFC:
    """g_t = −`step_multiplier` · direction · exp(`magnitude_multiplier` · magnitude), both from a small network.

    Its inputs, each over its root mean square in the tensor: ∇; the three momenta m; √v; m/√v; 1/√v; and for three
    decays of the factored v̂: ∇/√v̂; m/√v̂; the roots of the row's and of the column's mean, and their inverses. Beside
    them the time of the tensor, tanh(t/x − 1) for eleven x from 1 to 100 000.
    """

    kind: ClassVar[str] = "small_fc"
    learned: ClassVar[bool] = True
    coordinatewise: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    features: ClassVar[tuple[str, ...]] = (*(f"momentum.{decay}" for decay in DECAYS), "square")

    hidden_size: int = 4
    step_multiplier: float = 0.001
    magnitude_multiplier: float = 0.001

    def __post_init__(self) -> None:
        require_range("architecture.hidden_size", self.hidden_size, low=1, below=257)

    def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """The steps taken, and the mean squares of rows and columns, one for each decay."""
        return {"clock": (1, 1), "rows": (len(DECAYS), _rows(shape)), "columns": (len(DECAYS), _columns(shape))}

    @property
    def session_arrays(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Layers drawn from a normal distribution of variance 1/inputs, cut at two deviations, float32."""
        layers = (INPUTS + len(TIMESCALES), self.hidden_size, self.hidden_size, 2)
        phi: dict[str, Tensor] = {}
        for number, (inputs, outputs) in enumerate(pairwise(layers)):
            weight = torch.nn.init.trunc_normal_(torch.empty(outputs, inputs), a=-2, b=2, generator=generator)
            phi[f"layers.{number}.weight"] = weight / math.sqrt(inputs)
            phi[f"layers.{number}.bias"] = torch.zeros(outputs)
        return phi

    def step(self, phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        """One step of all tensors (section 3 of the paper and its appendix)."""
        shapes, arrays = observations.shapes, state.arrays
        gradients = observations.gradients.clamp(-LARGEST, LARGEST).unsqueeze(-2)
        decays = constants(DECAYS, gradients).unsqueeze(-1)
        momenta = torch.lerp(gradients, state.coordinates[..., :3, :], decays)
        square = torch.lerp(gradients.square(), state.coordinates[..., 3:, :], SQUARE_DECAY)
        factors = _follow_factors(arrays, gradients.square(), decays, shapes)
        following = {"clock": arrays["clock"] + 1, "rows": factors.rows, "columns": factors.columns}
        inputs = [_inputs(piece, gradients, momenta, square, factors) for piece in pieces(shapes)]
        updates = self._updates(phi, inputs, arrays["clock"], shapes)
        return updates, HiddenState(torch.cat((momenta, square), dim=-2), following)

    def _updates(self, phi: Phi, inputs: list[Tensor], clock: Tensor, shapes: Shapes) -> Updates:
        squares = total(shapes, [piece.sums(part.square()) for piece, part in zip(pieces(shapes), inputs, strict=True)])
        inverse = torch.rsqrt(squares / constants(sizes(shapes), clock) + EPSILON**2)
        time = torch.tanh(clock / constants(TIMESCALES, clock).unsqueeze(-1) - 1)
        of_inputs, of_time = torch.split(phi["layers.0.weight"], [INPUTS, len(TIMESCALES)], dim=1)
        at_time = torch.matmul(of_time, time) + phi["layers.0.bias"].unsqueeze(-1)
        parts = []
        for piece, part in zip(pieces(shapes), inputs, strict=True):
            normalised = (part * piece.spread(inverse)).clamp(-LARGEST_INPUT, LARGEST_INPUT)
            layer = torch.relu(torch.matmul(of_inputs, normalised) + piece.spread(at_time))
            layer = torch.relu(linear(phi, "layers.1", layer))
            direction, magnitude = linear(phi, "layers.2", layer).unbind(-2)
            exponent = (self.magnitude_multiplier * magnitude).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
            parts.append(-self.step_multiplier * direction * torch.exp(exponent))
        return joined(parts)


class _Factors(NamedTuple):
    """Adafactor's second moments of all tensors, and what they are at the elements; three rows each."""

    rows: Tensor  # [..., 3, Σ rows]
    columns: Tensor  # [..., 3, Σ columns]
    inverse: Tensor  # 1/√v̂, [..., 3, n]
    row_roots: Tensor  # [..., 3, n]
    column_roots: Tensor  # [..., 3, n]


def _follow_factors(arrays: dict[str, Tensor], squares: Tensor, decays: Tensor, shapes: Shapes) -> _Factors:
    """The means with one more ∇², `[…, 1, n]`."""
    parts = zip(
        torch.split(squares, list(sizes(shapes)), dim=-1),
        torch.split(arrays["rows"], [_rows(shape) for shape in shapes], dim=-1),
        torch.split(arrays["columns"], [_columns(shape) for shape in shapes], dim=-1),
        shapes,
        strict=True,
    )
    tensors: list[tuple[Tensor, ...]] = []
    for part, old_rows, old_columns, shape in parts:
        rows = torch.lerp(factored.row_means(part, shape), old_rows, decays)
        columns = torch.lerp(factored.column_means(part, shape), old_columns, decays)
        inverse = factored.inverse_roots(rows, columns, shape, EPSILON)
        tensors.append((rows, columns, inverse, *factored.at_elements(_root(rows), _root(columns), shape)))
    return _Factors(*(torch.cat(of_tensors, dim=-1) for of_tensors in zip(*tensors, strict=True)))


def _inputs(piece: Piece, gradients: Tensor, momenta: Tensor, square: Tensor, factors: _Factors) -> Tensor:
    """All inputs of a piece but the time, `[…, INPUTS, stop − start]`."""
    gradients, momenta, square = piece.of(gradients), piece.of(momenta), piece.of(square)
    factored_inverse = piece.of(factors.inverse)
    row_roots, column_roots = piece.of(factors.row_roots), piece.of(factors.column_roots)
    inverse = torch.rsqrt(square + EPSILON**2)
    rows = (
        gradients,
        momenta,
        _root(square),
        momenta * inverse,
        inverse,
        gradients * factored_inverse,
        momenta * factored_inverse,
        row_roots,
        column_roots,
        1 / row_roots,
        1 / column_roots,
    )
    return torch.cat(rows, dim=-2)


def _root(square: Tensor) -> Tensor:
    return torch.sqrt(square + EPSILON**2)


def _rows(shape: tuple[int, ...]) -> int:
    return math.prod(factored.row_shape(shape))


def _columns(shape: tuple[int, ...]) -> int:
    return math.prod(factored.column_shape(shape))
