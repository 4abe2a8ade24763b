"""What `hierarchical` makes of its losses, its place in the run and the sums over its tensors, and its scheduler.

The equations are those of `readings` and `scheduler`: a few numbers a tensor and a loop, in float64. What is remembered
of them is float32.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math

import numpy as np

from optserve_server.optimizers import directions, readings
from optserve_server.optimizers.kernels.compiling import inlined
from optserve_server.optimizers.kernels.functions import ONE, ZERO
from optserve_server.optimizers.kernels.vectors import LANES, load, splat, store
from optserve_server.optimizers.scheduler import HIGHEST, INPUTS, LARGEST_DRIFT, LOWEST

_TINY = readings.TINY
_TINY_SQUARE = directions.EPSILON**2
_SPIKE_SQUARE = directions.SPIKE**2
_LARGEST_LOSS = readings.LARGEST_LOSS
_USUAL_LENGTH, _LEAST_LENGTH = readings.USUAL_LENGTH, readings.LEAST_LENGTH
_LOWEST_BASE, _HIGHEST_BASE, _LARGEST_REACH = readings.LOWEST_BASE, readings.HIGHEST_BASE, readings.LARGEST_REACH
_DISAGREEMENT = readings.DISAGREEMENT
_LN2 = math.log(2)
_DECAYS = (*directions.DECAYS, 0.9, 0.95, 0.98, 0.95, 0.7)
_AT_09, _AT_095, _AT_098, _PAIRS_AT_095, _PAIRS_AT_07 = range(4, 9)  # beside those of the moments
_INPUTS = len(INPUTS)

_NUMBER, _FIRST, _LOWEST, _LAST, _RECENT, _USUAL, _DEVIATION, _REFERENCE = range(8)  # of the losses
_SLOPE, _PENDING, _EXPECTED, _ACHIEVED, _EXPECTED_LATELY, _ACHIEVED_LATELY, _REACH = range(7)  # of the descent


@inlined
def own(weights, loop):
    """A loop's weights, where there are as many as loops, or those of all."""
    return weights[loop if weights.shape[0] > 1 else 0]


@inlined
def make_shares():
    """For `newest_share`: of each decay, the last clock and its share."""
    return np.full((len(_DECAYS), 2), -1.0)


@inlined
def newest_share(shares, decay, clock):
    """(1 − β)/(1 − β^{t+1}) with β = `_DECAYS[decay]`, kept for the next loop or tensor at the same step t."""
    if shares[decay, 0] != clock:
        beta = _DECAYS[decay]
        shares[decay, 0], shares[decay, 1] = clock, (1 - beta) / -math.expm1((clock + 1) * math.log(beta))
    return shares[decay, 1]


@inlined
def limited(x, low, high):
    """`x`, but at least `low` and at most `high`; NaN stays NaN."""
    return low if x < low else high if x > high else x


@inlined
def _smaller(a, b):
    return a if a <= b or math.isnan(a) else b


@inlined
def _larger(a, b):
    return a if a >= b or math.isnan(a) else b


@inlined
def _lerp(mean, value, share):
    return mean + share * (value - mean)


@inlined
def follow_session(state, observed, loop, shares, inputs):
    """Take the loss of this step into the losses, descent and caution; the session's readings into `inputs`.

    Returns 1/T while it drifts.
    """
    clock = np.float64(state.steps[loop, 0, 0])
    declared = observed.horizons.shape[0] > 0
    share, drifting = _read_position(clock, observed.horizons[loop] if declared else 0.0, declared, inputs)
    losses, descent = state.losses[loop], state.descent[loop]
    caution = np.float64(state.caution[loop, 0, 0])
    recovered = _smaller(caution + 40 * share, 0.0)
    if observed.losses.shape[0] > 0:
        loss = limited(np.float64(observed.losses[loop]), -_LARGEST_LOSS, _LARGEST_LOSS)
        _follow_achievement(descent, losses, loss, shares)
        _follow_losses(losses, loss, shares)
        off = abs(np.float64(losses[_FIRST, 0]) - losses[_REFERENCE, 0])
        allowed = 2 * np.float64(losses[_DEVIATION, 0]) + 0.5 * off
        alarmed = losses[_NUMBER, 0] > 10 and losses[_RECENT, 0] > losses[_REFERENCE, 0] + allowed
        recovered = _larger(caution - 0.2 if alarmed else recovered, -4.0)
    state.caution[loop, 0, 0] = recovered
    _read_losses(losses, descent, inputs)
    return drifting


@inlined
def _read_position(clock, horizon, declared, inputs):
    if declared:
        passed = _smaller(clock / _larger(np.float64(horizon), 1.0), 1.0)
        length = _larger(np.float64(horizon), _LEAST_LENGTH)
        share = 1 / length
        drifting = share if passed < 1 else 0.0
        inputs[13] = 2 * passed - 1
        inputs[14] = math.log(_larger(1 - passed, 0.01)) / 4
        inputs[16] = 1.0
    else:
        length = _larger(2 * clock, _USUAL_LENGTH)
        share = drifting = 1 / length
        inputs[13] = -1.0
        inputs[14] = inputs[16] = 0.0
    inputs[15] = limited(math.log(length / _USUAL_LENGTH) / 3, -1.2, 1.2)
    inputs[17] = 10 / (10 + clock)
    inputs[18] = math.exp(-clock / 4)
    return share, drifting


@inlined
def _follow_achievement(descent, losses, loss, shares):
    number = np.float64(losses[_NUMBER, 0])
    if number > 0:
        share = newest_share(shares, _PAIRS_AT_095, number - 1)
        pending, fallen = np.float64(descent[_PENDING, 0]), losses[_LAST, 0] - loss
        descent[_EXPECTED, 0] = _lerp(np.float64(descent[_EXPECTED, 0]), pending, share)
        descent[_ACHIEVED, 0] = _lerp(np.float64(descent[_ACHIEVED, 0]), fallen, share)
        share = newest_share(shares, _PAIRS_AT_07, number - 1)
        descent[_EXPECTED_LATELY, 0] = _lerp(np.float64(descent[_EXPECTED_LATELY, 0]), pending, share)
        descent[_ACHIEVED_LATELY, 0] = _lerp(np.float64(descent[_ACHIEVED_LATELY, 0]), fallen, share)
        expected, achieved = (
            abs(np.float64(descent[_EXPECTED_LATELY, 0])),
            abs(np.float64(descent[_ACHIEVED_LATELY, 0])),
        )
        if expected > 0 and achieved <= _DISAGREEMENT * expected:
            descent[_REACH, 0] = _smaller(np.float64(descent[_REACH, 0]) + _LN2, _LARGEST_REACH)
    else:
        descent[_EXPECTED, 0] = descent[_ACHIEVED, 0] = 0.0
        descent[_EXPECTED_LATELY, 0] = descent[_ACHIEVED_LATELY, 0] = 0.0
    descent[_PENDING, 0] = 0.0


@inlined
def _follow_losses(losses, loss, shares):
    number = np.float64(losses[_NUMBER, 0])
    begun = number > 0
    before = np.float64(losses[_RECENT, 0])
    recent = _lerp(before, loss, newest_share(shares, _AT_09, number))
    deviation = abs(loss - before) if begun else 0.0
    losses[_NUMBER, 0] = number + 1
    losses[_FIRST, 0] = losses[_FIRST, 0] if begun else loss
    losses[_LOWEST, 0] = _smaller(np.float64(losses[_LOWEST, 0]), loss) if begun else loss
    losses[_LAST, 0] = loss
    losses[_RECENT, 0] = recent
    losses[_USUAL, 0] = _lerp(np.float64(losses[_USUAL, 0]), loss, newest_share(shares, _AT_098, number))
    losses[_DEVIATION, 0] = _lerp(np.float64(losses[_DEVIATION, 0]), deviation, newest_share(shares, _AT_095, number))
    drifting = _lerp(np.float64(losses[_REFERENCE, 0]), recent, 0.02)
    losses[_REFERENCE, 0] = _smaller(recent, drifting) if begun else recent


@inlined
def _read_losses(losses, descent, inputs):
    recent, expected = abs(np.float64(losses[_RECENT, 0])), abs(np.float64(descent[_EXPECTED, 0]))
    trend = (np.float64(losses[_RECENT, 0]) - losses[_USUAL, 0]) / (losses[_DEVIATION, 0] + 1e-6 * recent + _TINY)
    log_recent = math.log(recent + _TINY)
    inputs[8] = limited(trend, -3.0, 3.0) / 3
    inputs[9] = limited(log_recent - math.log(abs(np.float64(losses[_FIRST, 0])) + _TINY), -16.0, 16.0) / 4
    inputs[10] = limited(log_recent - math.log(expected + _TINY), -4.0, 10.0) / 5 if losses[_NUMBER, 0] > 1 else 0.0
    inputs[11] = limited(descent[_ACHIEVED, 0] / (expected + 1e-12 * recent + _TINY), -2.0, 2.0) / 2
    expected = abs(np.float64(descent[_EXPECTED_LATELY, 0]))
    inputs[23] = limited(descent[_ACHIEVED_LATELY, 0] / (expected + 1e-12 * recent + _TINY), -2.0, 2.0) / 2
    inputs[12] = 1.0 if losses[_NUMBER, 0] > 0 else 0.0


@inlined
def read_factors(state, loop, tensor, size, square, usual, shares, factors):
    """The tensor's row of `Work.factors`; `square` and `usual` are sums over its coordinates."""
    excess = (square / size) / (_SPIKE_SQUARE * (usual / size) + _TINY_SQUARE)
    factors[0] = 1 / math.sqrt(_larger(excess, 1.0)) if usual > 0 else 1.0
    clock = np.float64(state.clock[loop, 0, tensor])
    for moment in range(4):
        factors[1 + moment] = newest_share(shares, moment, clock)
    factors[5] = newest_share(shares, _AT_09, clock)


@inlined
def read_base(losses, descent, slope):
    """ln base, by the scale of the loss and the largest slope."""
    first = np.float64(losses[_FIRST, 0])
    scale = _larger(abs(first), first - losses[_LOWEST, 0])
    steepest = _larger(np.float64(descent[_SLOPE, 0]), slope)
    log_base = 4 + math.log(scale + _TINY) - math.log(steepest + _TINY)
    highest = _HIGHEST_BASE + np.float64(descent[_REACH, 0])
    return limited(log_base, _LOWEST_BASE, highest) if scale > 0 else 0.0


@inlined
def read_rates(log_base, descent, slope, inputs):
    """ln base, and how steep the loss is beside where it was steepest."""
    steepest = _larger(np.float64(descent[_SLOPE, 0]), slope)
    inputs[19] = log_base / 4
    inputs[20] = limited(math.log(slope + _TINY) - math.log(steepest + _TINY), -16.0, 0.0) / 4


@inlined
def read_extent(sizes, inputs):
    """How many coordinates the loop has, and how many tensors."""
    coordinates = 0.0
    for tensor in range(sizes.shape[0]):
        coordinates += sizes[tensor]
    inputs[21] = math.log(_smaller(coordinates, 1e6)) / 8 - 0.5
    inputs[22] = math.log(np.float64(sizes.shape[0])) / 3


@inlined
def _cosine(product, square, other_square):
    return product / math.sqrt(square * other_square + _TINY_SQUARE)


@inlined
def follow_together(state, loop, product, square, other_square, shares):
    """Take the cosine of all tensors together into its running mean, and return that."""
    share = newest_share(shares, _AT_09, np.float64(state.steps[loop, 0, 0]))
    mean = np.float64(state.common_alignment[loop, 0, 0])
    state.common_alignment[loop, 0, 0] = _lerp(mean, _cosine(product, square, other_square), share)
    return state.common_alignment[loop, 0, 0]


@inlined
def read_tensor(alignment, tensor, size, sums, share, together, inputs):
    """The tensor's own readings into `inputs`, from the sums over its coordinates; `share` is the newest cosine's."""
    now, slow_now = _cosine(sums[0], sums[2], sums[3]), _cosine(sums[1], sums[2], sums[4])
    alignment[0, tensor] = _lerp(np.float64(alignment[0, tensor]), now, share)
    alignment[1, tensor] = _lerp(np.float64(alignment[1, tensor]), slow_now, share)
    inputs[0] = now
    inputs[1] = 2 * alignment[0, tensor]
    inputs[2] = 2 * alignment[1, tensor]
    inputs[3] = 2 * together
    inputs[4] = math.log(sums[6] / size + 1e-4) / 3
    inputs[5] = math.log(sums[7] / size + 1e-4) / 3
    inputs[6] = sums[8] / size
    inputs[7] = math.log(_smaller(size, 4096.0)) / 8 - 0.5


@inlined
def schedule(weights, state, loop, tensor, drifting, inputs, seen, gates):
    """One step of the scheduler on a tensor's `inputs` `[24]`; returns the log of its rate.

    `seen` `[1 + S + 24]` and `gates` `[1, …]`, as long as a row of `Weights.gates`, are overwritten.
    """
    hidden = state.scheduler[loop]
    size = hidden.shape[0]
    seen[0] = ONE
    for unit in range(size):
        seen[1 + unit] = hidden[unit, tensor]
    for row in range(_INPUTS):
        seen[1 + size + row] = inputs[row]
    products(own(weights.gates, loop), seen, gates)
    for unit in range(size):
        gate = 1 / (1 + math.exp(-np.float64(gates[0, unit])))
        candidate = math.tanh(np.float64(gates[0, size + unit]))
        hidden[unit, tensor] = _lerp(np.float64(hidden[unit, tensor]), candidate, gate)
        seen[1 + unit] = hidden[unit, tensor]
    rates = own(weights.rates, loop)
    drift_step, level = 0.0, 0.0
    for row in range(seen.shape[0]):
        drift_step += np.float64(rates[0, row]) * seen[row]
        level += np.float64(rates[1, row]) * seen[row]
    drift = state.drift[loop, 0, tensor] + 5 * drifting * math.tanh(2 * drift_step)
    state.drift[loop, 0, tensor] = limited(drift, -LARGEST_DRIFT, LARGEST_DRIFT)
    return state.drift[loop, 0, tensor] + limited(2 * level, LOWEST, HIGHEST)


@inlined
def products(weights, inputs, outputs):
    """`outputs[0]` = Σ_r `inputs[r]` · `weights[r]`, rows of whole vectors."""
    for j in range(0, weights.shape[1], LANES):
        accumulated = splat(ZERO)
        for row in range(weights.shape[0]):
            accumulated = accumulated + inputs[row] * load(weights, row, j)
        store(accumulated, outputs, 0, j)


@inlined
def follow_updates(descent, slope, expected):
    """The largest slope, which at most doubles in a step, and what the updates should take off the loss."""
    before = np.float64(descent[_SLOPE, 0])
    doubled = 2 * before if before > 0 else slope
    descent[_SLOPE, 0] = _larger(before, _smaller(slope, doubled))
    descent[_PENDING, 0] = np.float64(descent[_PENDING, 0]) + expected
