"""`hierarchical`: a learned optimizer of three levels, coordinates, parameter tensors, and the session.

After Wichrowska et al. 2017 (arXiv 1703.04813) in its hierarchy, Lv et al. 2017 (arXiv 1703.03633) in its inputs free
of scale, and Harrison et al. 2022 (arXiv 2209.11208) in what it begins as, a hand-designed optimizer: before any
meta-training it is Adam, whose rate comes from the first loss, rises over some ten steps and falls to 0 at T.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers.base import HiddenState, Observations, Phi, Shapes, Updates, sizes
from optserve_server.optimizers.cells import uniform
from optserve_server.optimizers.directions import (
    FEATURES,
    LARGEST,
    Directions,
    Moments,
    change_of,
    directions_of,
    features_of,
    follow_moments,
    inverse_root,
    newest_shares,
    spike_scales,
)
from optserve_server.optimizers.hyperparameters import require_range
from optserve_server.optimizers.layers import linear
from optserve_server.optimizers.moments import newest_share
from optserve_server.optimizers.readings import (
    Descent,
    Losses,
    Position,
    follow_achievement,
    follow_caution,
    follow_losses,
    follow_updates,
    read_extent,
    read_lately,
    read_log_base,
    read_losses,
    read_position,
    read_rates,
    recovered,
)
from optserve_server.optimizers.scheduler import initial_scheduler_phi, schedule
from optserve_server.optimizers.segments import Piece, constants, joined, over_tensors, pieces, total

RATE = 0.01  # where both the base and the scheduler's factor are 1
LOG_RATES = (-20.0, 14.0)  # the least and the greatest rate, as logarithms of their quotient with RATE
COMPONENTS = 5  # outputs of the coordinates' network
LARGEST_OUTPUT = 4.0
LARGEST_STEP = 10.0  # of a coordinate, in units of its tensor's rate


@dataclass(frozen=True)
class Hierarchical:
    """Each coordinate's direction by a small network that all share, each tensor's rate by a recurrent scheduler.

    See `step` for the equations. The loss gives the rate its scale, and the horizon its fall; without a loss the scale
    is that of a usual problem, and without a horizon the rate stays until the scheduler has learned better.
    """

    kind: ClassVar[str] = "hierarchical"
    learned: ClassVar[bool] = True
    coordinatewise: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset({"loss", "horizon"})
    needs: ClassVar[frozenset[str]] = frozenset()
    features: ClassVar[tuple[str, ...]] = Moments._fields

    hidden_size: int = 8
    scheduler_size: int = 8

    def __post_init__(self) -> None:
        require_range("architecture.hidden_size", self.hidden_size, low=1, below=257)
        require_range("architecture.scheduler_size", self.scheduler_size, low=1, below=257)

    def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """The steps taken, the scheduler's h and drift, and how gradients have gone along with the two means."""
        return {"clock": (1, 1), "scheduler": (self.scheduler_size, 1), "drift": (1, 1), "alignment": (2, 1)}

    @property
    def session_arrays(self) -> dict[str, int]:
        """The steps taken, what the losses have said, caution, and the alignment of all tensors together."""
        return {
            "steps": 1,
            "losses": len(Losses._fields),
            "descent": len(Descent._fields),
            "caution": 1,
            "common_alignment": 1,
        }

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random layers with an output of 0, float32, so that the direction is Adam's."""
        size = self.hidden_size
        return {
            "coordinates.0.weight": uniform(generator, FEATURES, size, FEATURES),
            "coordinates.0.context": uniform(generator, self.scheduler_size, size, self.scheduler_size),
            "coordinates.0.bias": torch.zeros(size),
            "coordinates.1.weight": uniform(generator, size, size, size),
            "coordinates.1.bias": torch.zeros(size),
            "coordinates.2.weight": torch.zeros(COMPONENTS, size),
            "coordinates.2.bias": torch.zeros(COMPONENTS),
            **initial_scheduler_phi(self.scheduler_size, generator),
        }

    def step(self, phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        """One step of all tensors k and their coordinates i.

        m_i, v_i       running means of ∇ and of ∇², a fast and a slow one each; a = m/√v is Adam's direction
        base           = e⁴ · scale of the loss/slope, with slope = max_t Σ_i |∇_i a_i|
        rate_k, h_k    = scheduler(what is read of k's coordinates, of the losses, and of t and T)
        o_i            = network(features of i; h_k), even in ∇
        d_i            = a (1 + o_0/16)⁸ + ½ (o_1 a_slow + o_2 m/rms_k(m) + o_3 ∇/√v + o_4 m/√v_fast), odd in ∇
        g_i            = −0.01 · base · rate_k · d_i
        """
        shapes, arrays = observations.shapes, state.arrays
        gradients = observations.gradients.clamp(-LARGEST, LARGEST)
        position, losses, descent, caution = _follow_session(arrays, observations)
        parts = _follow_coordinates(state.coordinates, gradients, arrays["clock"], shapes)
        tensors = _read_tensors([part.sums for part in parts], shapes)
        alignment = _follow(arrays["alignment"], tensors.cosines, arrays["clock"])
        together = _follow(arrays["common_alignment"], tensors.cosine, arrays["steps"])

        base = read_log_base(losses, descent, tensors.slope)
        rates, lately = read_rates(base, descent, tensors.slope), read_lately(losses, descent)
        run = (*read_losses(losses, descent), *position.readings, *rates, *read_extent(shapes, base), *lately)
        inputs = _scheduler_inputs(tensors, alignment, together, run, shapes)
        scheduled = schedule(phi, inputs, arrays["scheduler"], arrays["drift"], position.drifting.unsqueeze(-1))
        log_rate = scheduled.log_rate + (base + caution).unsqueeze(-2)
        rate = RATE * torch.exp(log_rate.clamp(*LOG_RATES))

        updates = _updates(phi, parts, tensors, scheduled.hidden, rate, shapes)
        expected = -over_tensors(shapes, lambda piece: piece.of(gradients) * piece.of(updates))
        descent = follow_updates(descent, tensors.slope, expected.sum(dim=-1, keepdim=True))
        following = {
            "clock": arrays["clock"] + 1,
            "scheduler": scheduled.hidden,
            "drift": scheduled.drift,
            "alignment": alignment,
            "steps": arrays["steps"] + 1,
            "losses": torch.stack(losses, dim=-2),
            "descent": torch.stack(descent, dim=-2),
            "caution": caution.unsqueeze(-2),
            "common_alignment": together,
        }
        return updates, HiddenState(joined([torch.stack(part.moments, dim=-2) for part in parts]), following)


class _Part(NamedTuple):
    """A piece of the coordinates."""

    moments: Moments
    directions: Directions
    sums: Tensor  # over its tensors, what `_read_tensors` reads


class _Tensors(NamedTuple):
    """What the coordinates of each tensor say together, `[…, K]`, and those of the session, `[…, 1]`."""

    cosines: Tensor  # of ∇ with the fast and the slow mean before it, [..., 2, K]
    cosine: Tensor  # with the fast one, of all tensors together, [..., 1, 1]
    slope: Tensor  # Σ|∇ a| of all tensors together
    signals: Tensor  # mean squares of the fast and the slow direction, [..., 2, K]
    change: Tensor  # mean |change| of the squares
    mean_square: Tensor  # mean of the fast mean's square
    square: Tensor  # mean of the slow square


def _follow_session(arrays: dict[str, Tensor], observations: Observations) -> tuple[Position, Losses, Descent, Tensor]:
    """Where the loop is, and its losses, descent and caution with the loss of this step, if there is one; `[…, 1]`."""
    horizon = None if observations.horizon is None else observations.horizon.unsqueeze(-1)
    position = read_position(arrays["steps"].squeeze(-2), horizon)
    losses, descent = Losses(*arrays["losses"].unbind(-2)), Descent(*arrays["descent"].unbind(-2))
    caution = arrays["caution"].squeeze(-2)
    if observations.loss is None:
        return position, losses, descent, recovered(caution, position.share)
    loss = observations.loss.unsqueeze(-1)
    descent, losses = follow_achievement(descent, losses, loss), follow_losses(losses, loss)
    return position, losses, descent, follow_caution(caution, losses, position.share)


def _follow_coordinates(coordinates: Tensor, gradients: Tensor, clock: Tensor, shapes: Shapes) -> list[_Part]:
    """The coordinates' moments with one more gradient, after `clock` steps of each tensor, `[…, 1, K]`."""

    def squares(piece: Piece) -> Tensor:
        return torch.stack(
            (piece.of(gradients).square(), Moments(*piece.of(coordinates).unbind(-2)).fast_square), dim=-2
        )

    means = over_tensors(shapes, squares) / constants(sizes(shapes), gradients)
    scales = spike_scales(*means.unbind(-2)).unsqueeze(-2)
    factors = torch.cat((scales, newest_shares(clock, gradients)), dim=-2)
    return [_follow_piece(piece, coordinates, gradients, factors) for piece in pieces(shapes)]


def _follow_piece(piece: Piece, coordinates: Tensor, gradients: Tensor, factors: Tensor) -> _Part:
    before, gradients, factors = Moments(*piece.of(coordinates).unbind(-2)), piece.of(gradients), piece.spread(factors)
    seen = factors[..., 0, :] * gradients
    moments = follow_moments(before, seen, factors[..., 1:, :])
    directions = directions_of(moments, seen)
    inverse, now = inverse_root(moments.slow_square), directions.now
    fast, slow = before.fast * inverse, before.slow * inverse
    terms = (
        now * fast,
        now * slow,
        now.square(),
        fast.square(),
        slow.square(),
        (gradients * directions.fast).abs(),
        directions.fast.square(),
        directions.slow.square(),
        change_of(moments).abs(),
        moments.fast.square(),
        moments.slow_square,
    )
    return _Part(moments, directions, piece.sums(torch.stack(terms, dim=-2)))


def _read_tensors(sums: list[Tensor], shapes: Shapes) -> _Tensors:
    """From the sums of all pieces, in the order of the terms above."""
    totals = total(shapes, sums)
    averages = (totals / constants(sizes(shapes), totals))[..., 6:, :]
    product, _, of_now, of_fast, _, slope = torch.split(totals[..., :6, :].sum(dim=-1, keepdim=True), 1, dim=-2)
    return _Tensors(
        cosines=_cosine(totals[..., 0:2, :], totals[..., 2:3, :], totals[..., 3:5, :]),
        cosine=_cosine(product, of_now, of_fast),
        slope=slope.squeeze(-2),
        signals=averages[..., 0:2, :],
        change=averages[..., 2, :],
        mean_square=averages[..., 3, :],
        square=averages[..., 4, :],
    )


def _scheduler_inputs(
    tensors: _Tensors, alignment: Tensor, together: Tensor, run: tuple[Tensor, ...], shapes: Shapes
) -> Tensor:
    """y of each tensor, `[…, INPUTS, K]`; `run` are the readings of the session."""
    magnitudes = [math.log(min(4096, size)) / 8 - 0.5 for size in sizes(shapes)]
    rows = (
        tensors.cosines[..., 0, :],
        *(2 * alignment).unbind(-2),
        2 * together.squeeze(-2),
        *(torch.log(tensors.signals + 1e-4) / 3).unbind(-2),
        tensors.change,
        constants(magnitudes, tensors.change),
        *run,
    )
    return torch.stack([row.expand_as(tensors.change) for row in rows], dim=-2)


def _updates(phi: Phi, parts: list[_Part], tensors: _Tensors, hidden: Tensor, rate: Tensor, shapes: Shapes) -> Updates:
    """−rate · d: `hidden` and `rate` are of tensors, `[…, rows, K]`."""
    context = torch.matmul(phi["coordinates.0.context"], hidden) + phi["coordinates.0.bias"].unsqueeze(-1)
    inverses = inverse_root(torch.stack((tensors.square, tensors.mean_square), dim=-2))
    of_tensors = torch.cat((inverses, rate, context), dim=-2)
    each = zip(pieces(shapes), parts, strict=True)
    return joined([_update(phi, part.moments, part.directions, piece.spread(of_tensors)) for piece, part in each])


def _update(phi: Phi, moments: Moments, directions: Directions, of_tensors: Tensor) -> Updates:
    inverse, of_mean, rate = of_tensors[..., :3, :].unbind(-2)
    layer = torch.matmul(phi["coordinates.0.weight"], features_of(moments, directions, inverse))
    layer = torch.relu(layer + of_tensors[..., 3:, :])
    layer = torch.relu(linear(phi, "coordinates.1", layer))
    output = linear(phi, "coordinates.2", layer).clamp(-LARGEST_OUTPUT, LARGEST_OUTPUT)
    gain = (1 + output[..., 0, :] / 16).square().square().square()
    others = torch.stack((directions.slow, of_mean * moments.fast, directions.now, directions.agile), dim=-2)
    direction = gain * directions.fast + 0.5 * (output[..., 1:, :] * others).sum(dim=-2)
    return -rate * direction.clamp(-LARGEST_STEP, LARGEST_STEP)


def _follow(mean: Tensor, value: Tensor, clock: Tensor) -> Tensor:
    return torch.lerp(mean, value, newest_share(0.9, clock, mean))


def _cosine(product: Tensor, square: Tensor, other_square: Tensor) -> Tensor:
    return product * inverse_root(square * other_square)
