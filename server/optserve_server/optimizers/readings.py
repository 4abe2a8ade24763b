"""What the loss and the horizon tell about a run as a whole, in numbers free of scale and cut to a few units.

All numbers are of the session, `[…, 1]`, so that they broadcast to its tensors. A loop that sends no loss, or declares
no horizon, has readings too: see `Losses` and `Position`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers.base import Shapes, sizes
from optserve_server.optimizers.moments import newest_share

TINY = 1e-20  # beside losses and slopes, so that a logarithm or a quotient of nothing is a number, and its gradient too
LARGEST_LOSS = 1e15  # a loss is cut to this: differences and squares of larger ones would not fit in float32
LOWEST_BASE, HIGHEST_BASE, LARGEST_REACH = -12.0, 5.0, 7.0  # of ln base; at 5 the rate is 1.5, more than Adam ever has
DISAGREEMENT = 30.0  # loss and gradients are of one f if the loss changes by at most so many times what was expected
USUAL_LENGTH = 300.0  # steps; a run without a declared horizon is taken to be at least as long
LEAST_LENGTH = 30.0  # steps; a shorter run's rates drift no faster, or a single step could turn them over


class Losses(NamedTuple):
    """The losses so far. A step without a loss leaves them as they are; before the first, all are 0 and read as 0."""

    number: Tensor  # how many they are
    first: Tensor
    lowest: Tensor
    last: Tensor
    recent: Tensor  # running mean that forgets at 0.9
    usual: Tensor  # running mean that forgets at 0.98
    deviation: Tensor  # running mean of |f − recent|
    reference: Tensor  # the lowest `recent`, which drifts up to it in about 50 steps


class Descent(NamedTuple):
    """How the loss falls, beside what the gradients let expect."""

    slope: Tensor  # Σ|∇ · Adam's direction|, the largest so far: what a step of rate 1 would take off the loss
    pending: Tensor  # what the updates since the last loss should have taken off it
    expected: Tensor  # running mean of that, from loss to loss
    achieved: Tensor  # running mean of what they did take off
    expected_lately: Tensor  # both means again, of about the last three steps
    achieved_lately: Tensor
    reach: Tensor  # by how much ln base may be above `HIGHEST_BASE`


class Position(NamedTuple):
    """Where in its run the loop is: t of T steps. Without a declared T it is at the beginning, for ever."""

    share: Tensor  # 1/T, of one step, at most 1/30; for an undeclared T that of max(300, 2t)
    drifting: Tensor  # the same until t = T, then 0
    readings: tuple[Tensor, ...]


def read_position(clock: Tensor, horizon: Tensor | None) -> Position:
    """Where step t = `clock`, `[…, 1]`, is on the way to T = `horizon`, `[…, 1]` or not declared.

    The readings are 2t/T − 1, ¼ ln((T − t)/T) with at least a hundredth in the logarithm, ⅓ ln(T/300) of at least 30
    steps, whether T is declared, 10/(10 + t) and e^{−t/4}.
    """
    since = (10 / (10 + clock), torch.exp(-clock / 4))
    if horizon is None:
        length = (2 * clock).clamp(min=USUAL_LENGTH)
        nothing = torch.zeros_like(clock)
        return Position(1 / length, 1 / length, (nothing - 1, nothing, _read_length(length), nothing, *since))
    passed = (clock / horizon.clamp(min=1)).clamp(max=1)
    remaining = torch.log((1 - passed).clamp(min=0.01)) / 4
    length = horizon.clamp(min=LEAST_LENGTH)
    return Position(
        share=1 / length,
        drifting=torch.where(passed < 1, 1 / length, 0.0),
        readings=(2 * passed - 1, remaining, _read_length(length), torch.ones_like(passed), *since),
    )


def follow_losses(losses: Losses, loss: Tensor) -> Losses:
    """The losses with one more, `[…, 1]`."""
    loss = loss.clamp(-LARGEST_LOSS, LARGEST_LOSS)
    begun = losses.number > 0
    recent = _follow(losses.recent, loss, 0.9, losses.number)
    deviation = torch.where(begun, (loss - losses.recent).abs(), 0.0)
    drifting = torch.lerp(losses.reference, recent, 0.02)
    return Losses(
        number=losses.number + 1,
        first=torch.where(begun, losses.first, loss),
        lowest=torch.where(begun, torch.minimum(losses.lowest, loss), loss),
        last=loss,
        recent=recent,
        usual=_follow(losses.usual, loss, 0.98, losses.number),
        deviation=_follow(losses.deviation, deviation, 0.95, losses.number),
        reference=torch.where(begun, torch.minimum(recent, drifting), recent),
    )


def follow_achievement(descent: Descent, before: Losses, loss: Tensor) -> Descent:
    """Compare one more loss, `[…, 1]`, with what was expected of the steps since the last of those `before` it."""
    loss = loss.clamp(-LARGEST_LOSS, LARGEST_LOSS)
    begun, pairs = before.number > 0, (before.number - 1).clamp(min=0)

    def followed(mean: Tensor, value: Tensor, beta: float) -> Tensor:
        return torch.where(begun, _follow(mean, value, beta, pairs), 0.0)

    expected_lately = followed(descent.expected_lately, descent.pending, 0.7)
    achieved_lately = followed(descent.achieved_lately, before.last - loss, 0.7)
    moved = expected_lately.abs() > 0
    agrees = begun & moved & (achieved_lately.abs() <= DISAGREEMENT * expected_lately.abs())
    further = (descent.reach + math.log(2)).clamp(max=LARGEST_REACH)
    return Descent(
        slope=descent.slope,
        pending=torch.zeros_like(descent.pending),
        expected=followed(descent.expected, descent.pending, 0.95),
        achieved=followed(descent.achieved, before.last - loss, 0.95),
        expected_lately=expected_lately,
        achieved_lately=achieved_lately,
        reach=torch.where(agrees, further, descent.reach),
    )


def follow_updates(descent: Descent, slope: Tensor, expected: Tensor) -> Descent:
    """The descent with the slope at one more step and what its updates should take off the loss, each `[…, 1]`.

    One step at most doubles the largest slope, so that a single spike does not lower the rate for ever.
    """
    doubled = torch.where(descent.slope > 0, 2 * descent.slope, slope)
    steepest = torch.maximum(descent.slope, torch.minimum(slope, doubled))
    return descent._replace(slope=steepest, pending=descent.pending + expected)


def follow_caution(caution: Tensor, losses: Losses, share: Tensor) -> Tensor:
    """The log of a factor from e^−4 to 1 on all rates, that falls while the loss is far above its reference.

    The reference drifts: a loss that stays high is accepted in time, so that the loop never stands still for good.
    The factor then is back at 1 within a tenth of the run, whose steps are each its `share`.
    """
    allowed = 2 * losses.deviation + 0.5 * (losses.first - losses.reference).abs()
    alarmed = (losses.number > 10) & (losses.recent > losses.reference + allowed)
    return torch.where(alarmed, caution - 0.2, recovered(caution, share)).clamp(min=-4)


def recovered(caution: Tensor, share: Tensor) -> Tensor:
    """The log of that factor after a step without a new loss."""
    return (caution + 40 * share).clamp(max=0)


def read_log_base(losses: Losses, descent: Descent, slope: Tensor) -> Tensor:
    """ln base = 4 + ln(scale of the loss/largest slope), `[…, 1]`, at least −12; 0 where no loss has given a scale.

    The scale is |f_0|, or how far the loss has fallen where that is more. At a base of 1 and a rate of 0.01, Adam's
    first step should take off half of it, if the loss were linear. So the rate follows any change of the loss's units
    or the parameters' exactly.

    But gradients may come in other units than the loss, multiplied by a constant against underflow, say. So ln base
    begins at 5 at most, and may double with every step whose loss changes about as the gradients let expect, up to 12.
    """
    scale = torch.maximum(losses.first.abs(), losses.first - losses.lowest)
    steepest = torch.maximum(descent.slope, slope)
    log_base = 4 + torch.log(scale + TINY) - torch.log(steepest + TINY)
    return torch.where(scale > 0, log_base.clamp(min=LOWEST_BASE).minimum(HIGHEST_BASE + descent.reach), 0.0)


def read_losses(losses: Losses, descent: Descent) -> tuple[Tensor, ...]:
    """Trend, depth, steps to zero, share of the expected descent that was achieved, and whether there is a loss."""
    recent, expected = losses.recent.abs(), descent.expected.abs()
    trend = (losses.recent - losses.usual) / (losses.deviation + 1e-6 * recent + TINY)
    depth = torch.log(recent + TINY) - torch.log(losses.first.abs() + TINY)
    to_zero = torch.log(recent + TINY) - torch.log(expected + TINY)
    return (
        trend.clamp(-3, 3) / 3,
        depth.clamp(-16, 16) / 4,
        torch.where(losses.number > 1, to_zero.clamp(-4, 10) / 5, 0.0),
        _read_achieved(descent.achieved, expected, recent),
        (losses.number > 0).to(recent.dtype),
    )


def read_lately(losses: Losses, descent: Descent) -> tuple[Tensor]:
    """Which share of the expected descent was achieved in the last few steps."""
    return (_read_achieved(descent.achieved_lately, descent.expected_lately.abs(), losses.recent.abs()),)


def _read_achieved(achieved: Tensor, expected: Tensor, recent: Tensor) -> Tensor:
    return (achieved / (expected + 1e-12 * recent + TINY)).clamp(-2, 2) / 2


def read_rates(log_base: Tensor, descent: Descent, slope: Tensor) -> tuple[Tensor, Tensor]:
    """ln base, and how steep the loss is beside where it was steepest, each `[…, 1]`.

    The base tells the units of the parameters, if the loss can fall to 0. The scheduler may trust it more or less.
    """
    steepness = torch.log(slope + TINY) - torch.log(torch.maximum(descent.slope, slope) + TINY)
    return log_base / 4, steepness.clamp(-16, 0) / 4


def read_extent(shapes: Shapes, like: Tensor) -> tuple[Tensor, Tensor]:
    """How many coordinates the loop has, and how many tensors, each `[1]`."""
    coordinates = math.log(min(sum(sizes(shapes)), 10**6)) / 8 - 0.5
    return like.new_tensor([coordinates]), like.new_tensor([math.log(len(shapes)) / 3])


def _read_length(steps: Tensor) -> Tensor:
    return (torch.log(steps / USUAL_LENGTH) / 3).clamp(-1.2, 1.2)


def _follow(mean: Tensor, value: Tensor, beta: float, clock: Tensor) -> Tensor:
    return torch.lerp(mean, value, newest_share(beta, clock, mean))
