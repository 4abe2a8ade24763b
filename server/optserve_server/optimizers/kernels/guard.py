"""The update guard's equations: one look at a step's updates, and what takes the place of those that are refused.

Everything here is of one session, in one order, by one thread: no bit depends on what else a server does.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math

import numpy as np

from optserve_server.optimizers import guard
from optserve_server.optimizers.base import PAGE
from optserve_server.optimizers.guard import (
    ACCEPTED,
    AFRESH,
    AGAIN,
    BACK,
    BEST,
    BROKEN,
    CALM,
    CAUSE,
    DEVIATION,
    EVENT,
    FALLBACK,
    FIRST,
    HELD,
    LEVEL,
    LOSS_RISE,
    LOSSES,
    MAGNITUDE,
    MEAN,
    NON_FINITE,
    REASON,
    RISEN,
    SEEN,
    STAYED,
    SUNK,
    UPDATE_RMS,
)
from optserve_server.optimizers.kernels.compiling import compiled, kernel

_MEAN_DECAY, _SQUARE_DECAY = guard.BETAS
_TINY = guard.EPSILON
_LARGEST, _LARGEST_LOSS = guard.LARGEST, guard.LARGEST_LOSS
_FIRST_MAGNITUDE = guard.FIRST_MAGNITUDE
_MAGNITUDE_DECAY, _LOSS_DECAY = guard.MAGNITUDE_DECAY, guard.LOSS_DECAY
_DEVIATIONS, _SHARE, _RESOLUTION = guard.DEVIATIONS, guard.SHARE, guard.RESOLUTION
_MOST_HALVINGS, _STAYS, _ENOUGH = guard.MOST_HALVINGS, guard.STAYS, guard.ENOUGH


@kernel
def judge(updates, bounds, active, loss, limit, patience, run, tensors, verdicts):
    """Look at the updates of a step, follow the loss, and say in `verdicts` what happens to each tensor.

    `updates` is flat; tensor k has the coordinates from `bounds[k]` to `bounds[k + 1]` and takes part where `active`.
    `loss` is NaN where none was sent. Returns how many tensors have a verdict.
    """
    _follow_loss(run, loss, patience)
    under_loss = run[LEVEL, 0] > 0
    count = 0
    for tensor in range(active.shape[0]):
        verdicts[:, tensor] = 0
        if not active[tensor]:
            continue
        start, stop = bounds[tensor], bounds[tensor + 1]
        square = _sum_of_squares(updates, start, stop)
        rms = math.sqrt(square / (stop - start))
        cause = 0
        if not math.isfinite(square):
            cause = NON_FINITE
        elif rms > limit:
            cause = UPDATE_RMS
        reason = int(tensors[REASON, tensor])
        event = _judge_tensor(tensors, tensor, cause, under_loss, patience)
        if event in (0, BACK):
            number = min(np.float64(tensors[ACCEPTED, tensor]) + 1, _ENOUGH)
            tensors[ACCEPTED, tensor] = number
            tensors[MAGNITUDE, tensor] = _followed(tensors[MAGNITUDE, tensor], rms, _MAGNITUDE_DECAY, number)
        if event != 0:
            count += 1
            verdicts[EVENT, tensor] = event
            verdicts[CAUSE, tensor] = reason if event == BACK else int(tensors[REASON, tensor])
            verdicts[BROKEN, tensor] = cause == NON_FINITE
    return count


@compiled
def _judge_tensor(tensors, tensor, cause, under_loss, patience):
    """Let a tensor change hands, by its own cause at this step if there is one, and by the loss."""
    before = int(tensors[REASON, tensor])
    after = _reason_after(before, cause, under_loss, tensors[CALM, tensor] >= patience)
    tensors[REASON, tensor] = after
    if before == 0 or cause != 0:
        tensors[CALM, tensor] = 0
    else:
        tensors[CALM, tensor] = min(tensors[CALM, tensor] + 1, patience)
    if before == 0 and after != 0:
        tensors[AFRESH, tensor] = 0
        tensors[SEEN, tensor] = 0
    if after == before:
        return HELD if after != 0 else 0
    return FALLBACK if after != 0 else BACK


@compiled
def _reason_after(before, cause, under_loss, is_calm):
    """Why the fallback has a tensor after this step, which it had for `before`; 0: it has not."""
    by_itself = before in (NON_FINITE, UPDATE_RMS)
    if cause != 0:
        return before if by_itself else cause
    if by_itself and not is_calm:
        return before
    return LOSS_RISE if under_loss else 0


@compiled
def _follow_loss(run, loss, patience):
    """Whether the loss is too far above its best, for how long, and how often the magnitude is halved for it.

    f̄ is too far where f̄ > best + 2 · deviation + 0.1 · |first − best|.
    """
    sent = not math.isnan(loss)
    if sent:
        _follow_losses(run, min(max(loss, -_LARGEST_LOSS), _LARGEST_LOSS))
    first, best = np.float64(run[FIRST, 0]), np.float64(run[BEST, 0])
    margin = _DEVIATIONS * run[DEVIATION, 0] + _SHARE * abs(first - best) + _RESOLUTION * abs(best)
    above = run[MEAN, 0] > best + margin
    if run[LEVEL, 0] == 0:
        if sent:
            run[RISEN, 0] = run[RISEN, 0] + 1 if above else 0
        if run[RISEN, 0] >= patience:
            run[LEVEL, 0], run[SUNK, 0], run[STAYED, 0] = 1, 0, 0
        return
    run[STAYED, 0] += 1
    if above:
        run[SUNK, 0] = 0
        run[RISEN, 0] += 1
        if run[RISEN, 0] % patience == 0:
            run[LEVEL, 0] = min(run[LEVEL, 0] + 1, _MOST_HALVINGS)
    elif run[SUNK, 0] >= patience:
        run[LEVEL, 0] = 0
    else:
        run[SUNK, 0] += 1
        run[RISEN, 0] = 0
    if run[LEVEL, 0] == 0 or run[STAYED, 0] >= _STAYS * patience:
        run[RISEN, 0], run[STAYED, 0] = 0, 0
        if run[LEVEL, 0] > 0:
            run[BEST, 0] = run[MEAN, 0]


@compiled
def _follow_losses(run, loss):
    """The running means with one more loss."""
    number = min(np.float64(run[LOSSES, 0]) + 1, _ENOUGH)
    run[LOSSES, 0] = number
    if number == 1:
        run[FIRST, 0], run[MEAN, 0], run[BEST, 0] = loss, loss, loss
        return
    below = 2 * max(0.0, run[MEAN, 0] - loss)
    run[DEVIATION, 0] = _followed(run[DEVIATION, 0], below, _LOSS_DECAY, number - 1)
    run[MEAN, 0] = _followed(run[MEAN, 0], loss, _LOSS_DECAY, number)
    run[BEST, 0] = min(run[BEST, 0], run[MEAN, 0])


@compiled
def _followed(mean, term, decay, number):
    """A running mean with its `number`-th term, which it needs no correction for."""
    return mean + (1 - decay) / (1 - decay**number) * (term - mean)


@compiled
def _sum_of_squares(values, start, stop):
    # Eight sums side by side, in float64, whatever the processor: not finite where a value is not.
    a = b = c = d = e = f = g = h = 0.0
    place = start
    while place + 8 <= stop:
        a += np.float64(values[place]) * np.float64(values[place])
        b += np.float64(values[place + 1]) * np.float64(values[place + 1])
        c += np.float64(values[place + 2]) * np.float64(values[place + 2])
        d += np.float64(values[place + 3]) * np.float64(values[place + 3])
        e += np.float64(values[place + 4]) * np.float64(values[place + 4])
        f += np.float64(values[place + 5]) * np.float64(values[place + 5])
        g += np.float64(values[place + 6]) * np.float64(values[place + 6])
        h += np.float64(values[place + 7]) * np.float64(values[place + 7])
        place += 8
    while place < stop:
        a += np.float64(values[place]) * np.float64(values[place])
        place += 1
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@kernel
def fall_back(updates, gradients, bounds, verdicts, limit, run, tensors, moments, held, numbers, rows, corrections):
    """Put −magnitude · m̂/√v̂ in the place of the updates of all tensors that the fallback has.

    The magnitude is the mean root mean square of the updates that were let through, halved as often as `run` says; the
    root mean square of what comes of it is at most `limit`. m and v are the guard's own, `moments` `[2, n]`, which see
    this step's gradients here; or, where these are empty, the rows `rows` of the pages `numbers` of `held`
    `[capacity, features, 256]`, which have seen them, over `corrections` `[2, K]`.
    """
    halved = 2.0 ** -np.float64(run[LEVEL, 0])
    for tensor in range(verdicts.shape[1]):
        if verdicts[EVENT, tensor] != FALLBACK and verdicts[EVENT, tensor] != HELD:
            continue
        start, stop = bounds[tensor], bounds[tensor + 1]
        if moments.shape[1]:
            seen = min(np.float64(tensors[SEEN, tensor]) + 1, _ENOUGH)
            tensors[SEEN, tensor] = seen
            _follow_moments(updates, gradients, start, stop, moments, seen)
        else:
            mean_share, square_share = corrections[0, tensor], corrections[1, tensor]
            for place in range(start, stop):
                page, column = numbers[place // PAGE], place % PAGE
                mean, square = held[page, rows[0], column], held[page, rows[1], column]
                updates[place] = _direction(mean / mean_share, square / square_share)
        accepted = tensors[ACCEPTED, tensor] > 0
        magnitude = np.float64(tensors[MAGNITUDE, tensor]) if accepted else _FIRST_MAGNITUDE
        _scale(updates, start, stop, min(magnitude * halved, limit), limit)


@compiled
def _follow_moments(updates, gradients, start, stop, moments, seen):
    mean_share = (1 - _MEAN_DECAY) / (1 - _MEAN_DECAY**seen)
    square_share = (1 - _SQUARE_DECAY) / (1 - _SQUARE_DECAY**seen)
    for place in range(start, stop):
        gradient = min(max(np.float64(gradients[place]), -_LARGEST), _LARGEST)
        mean, square = gradient, gradient * gradient
        if seen > 1:
            mean = moments[0, place] + mean_share * (gradient - moments[0, place])
            square = moments[1, place] + square_share * (gradient * gradient - moments[1, place])
        moments[0, place], moments[1, place] = mean, square
        updates[place] = _direction(mean, square)


@compiled
def _direction(mean, square):
    return mean / (math.sqrt(square) + _TINY)


@compiled
def _scale(updates, start, stop, magnitude, limit):
    """−magnitude · the direction in `updates`, or as much of it as keeps its root mean square at the limit."""
    square = _sum_of_squares(updates, start, stop)
    if not math.isfinite(square):  # of moments that are not finite there is no direction
        updates[start:stop] = 0.0
        return
    rms = math.sqrt(square / (stop - start))
    if magnitude * rms > limit:
        magnitude = limit / rms
    for place in range(start, stop):
        updates[place] = -magnitude * updates[place]


@kernel
def start_afresh(held, numbers, bounds, verdicts):
    """Put zeros into the coordinates' hidden state of tensors that are broken, where a number of it is not finite.

    Such a tensor's `verdicts[BROKEN]` is `AGAIN` afterwards.
    """
    for tensor in range(verdicts.shape[1]):
        start, stop = bounds[tensor], bounds[tensor + 1]
        if verdicts[BROKEN, tensor] and not _is_finite(held, numbers, start, stop):
            verdicts[BROKEN, tensor] = AGAIN
            for page in range(start // PAGE, -(-stop // PAGE)):
                first, last = _columns(page, start, stop)
                held[numbers[page], :, first:last] = 0.0


@compiled
def _is_finite(held, numbers, start, stop):
    for page in range(start // PAGE, -(-stop // PAGE)):
        first, last = _columns(page, start, stop)
        for feature in range(held.shape[1]):
            for column in range(first, last):
                if not math.isfinite(held[numbers[page], feature, column]):
                    return False
    return True


@compiled
def _columns(page, start, stop):
    """Which columns of a session's page the coordinates from `start` to `stop` have there."""
    return max(start - page * PAGE, 0), min(stop - page * PAGE, PAGE)


def compile_guard() -> None:
    """Compile all of this, or read it from the cache: no step should wait for it, least of all in trouble."""
    updates, bounds = np.full(PAGE, np.inf, np.float32), np.array([0, PAGE])
    run = np.zeros((guard.RUN_ROWS, 1), np.float32)
    tensors = np.zeros((guard.TENSOR_ROWS, 1), np.float32)
    verdicts = np.zeros((guard.VERDICT_ROWS, 1), np.int8)
    held, numbers, rows = np.zeros((1, 1, PAGE), np.float32), np.zeros(1, np.int64), np.zeros(2, np.int64)
    moments, corrections = np.zeros((2, PAGE), np.float32), np.ones((2, 1))
    judge(updates, bounds, np.ones(1, np.bool_), math.nan, 1.0, 1, run, tensors, verdicts)
    seen = (run, tensors, moments, held, numbers, rows, corrections)
    fall_back(updates, np.zeros(PAGE, np.float32), bounds, verdicts, 1.0, *seen)
    start_afresh(held, numbers, bounds, verdicts)
