"""The three passes of `hierarchical` over a chunk of the coordinates of one tensor, a block of 64 at a time."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import NamedTuple

import numpy as np

from optserve_server.optimizers import directions
from optserve_server.optimizers.kernels.compiling import inlined
from optserve_server.optimizers.kernels.functions import HALF, ONE, ZERO
from optserve_server.optimizers.kernels.networks import Float32s
from optserve_server.optimizers.kernels.products import BLOCK, ROWS, TILE, matrix_tile
from optserve_server.optimizers.kernels.recurrent import aligned
from optserve_server.optimizers.kernels.vectors import LANES, absolute, clamp, load, splat, square_root, store, total

_TINY = np.float32(directions.EPSILON**2)
_LARGEST = np.float32(directions.LARGEST)
_LARGEST_FEATURE = np.float32(directions.LARGEST_FEATURE)
_LARGEST_PRODUCT = np.float32(3)
_LARGEST_OUTPUT = np.float32(4)
_LARGEST_STEP = np.float32(10)
_SIXTEENTH = np.float32(1 / 16)
_INFINITY = np.float32(np.inf)

_GRADIENT, _UPDATE, _FAST, _SLOW, _NOW, _AGILE = range(4, 10)  # rows of a block, behind the moments


class Scratch(NamedTuple):
    """One block at work, `[rows, 64]` each: what is loaded, and the layers' inputs and outputs behind a row of ones.

    `first` is the first layer's weights with a tensor's context for their bias.
    """

    block: Float32s
    features: Float32s
    hidden: Float32s
    deeper: Float32s
    outputs: Float32s
    first: Float32s


@inlined
def make_scratch(weights):
    """A `Scratch` for one thread."""
    groups = weights.first.shape[1]
    block = aligned((_AGILE + 1, BLOCK))
    features = aligned((1 + directions.FEATURES, BLOCK))
    hidden = aligned((1 + ROWS * groups, BLOCK))
    deeper = aligned((1 + ROWS * groups, BLOCK))
    outputs = aligned((ROWS * weights.third.shape[1], BLOCK))
    block[:] = ZERO
    for inputs in (features, hidden, deeper):
        inputs[:] = ZERO
        inputs[0] = ONE
    first = aligned((groups, weights.first.shape[2]))
    return Scratch(block, features, hidden, deeper, outputs, first)


@inlined
def measure_chunk(moments, gradients, loop, start, stop, scratch, squares):
    """`squares` `[2]`: the sums of ∇² and of the fast squares before it."""
    block = scratch.block
    square, usual = splat(ZERO), splat(ZERO)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        _fetch(gradients, loop, first, count, block, _GRADIENT)
        _fetch(moments, 2, first, count, block, 2)
        for j in range(0, count, LANES):
            gradient = clamp(load(block, _GRADIENT, j), -_LARGEST, _LARGEST)
            square = square + gradient * gradient
            usual = usual + load(block, 2, j)
    squares[0], squares[1] = total(square), total(usual)


@inlined
def follow_chunk(moments, gradients, loop, start, stop, factors, scratch, sums):
    """Take one more gradient into the moments, in place; `sums` `[SUMS]` are what `Hierarchical` reads of them."""
    block = scratch.block
    scale, fast_share, slow_share = factors[0], factors[1], factors[2]
    fast_square_share, slow_square_share = factors[3], factors[4]
    now_fast, now_slow, now_now, fast_fast, slow_slow = _zeros(), _zeros(), _zeros(), _zeros(), _zeros()
    slope, fast_signal, slow_signal, change = _zeros(), _zeros(), _zeros(), _zeros()
    mean_square, square = _zeros(), _zeros()
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        _fetch(gradients, loop, first, count, block, _GRADIENT)
        for row in range(4):
            _fetch(moments, row, first, count, block, row)
        for j in range(0, count, LANES):
            gradient = clamp(load(block, _GRADIENT, j), -_LARGEST, _LARGEST)
            seen = scale * gradient
            seen_square = seen * seen
            fast_before, slow_before = load(block, 0, j), load(block, 1, j)
            fast_mean = _follow(fast_before, seen, fast_share)
            slow_mean = _follow(slow_before, seen, slow_share)
            fast_square = _follow(load(block, 2, j), seen_square, fast_square_share)
            slow_square = _follow(load(block, 3, j), seen_square, slow_square_share)
            store(fast_mean, block, 0, j)
            store(slow_mean, block, 1, j)
            store(fast_square, block, 2, j)
            store(slow_square, block, 3, j)
            inverse = ONE / square_root(slow_square + _TINY)
            now, fast, slow = seen * inverse, fast_mean * inverse, slow_mean * inverse
            past, slow_past = fast_before * inverse, slow_before * inverse
            now_fast = now_fast + now * past
            now_slow = now_slow + now * slow_past
            now_now = now_now + now * now
            fast_fast = fast_fast + past * past
            slow_slow = slow_slow + slow_past * slow_past
            slope = slope + absolute(gradient * fast)
            fast_signal = fast_signal + fast * fast
            slow_signal = slow_signal + slow * slow
            change = change + absolute(_change(fast_square, slow_square))
            mean_square = mean_square + fast_mean * fast_mean
            square = square + slow_square
        for row in range(4):
            _put_back(block, row, moments, row, first, count)
    sums[0], sums[1], sums[2], sums[3] = total(now_fast), total(now_slow), total(now_now), total(fast_fast)
    sums[4], sums[5], sums[6], sums[7] = total(slow_slow), total(slope), total(fast_signal), total(slow_signal)
    sums[8], sums[9], sums[10] = total(change), total(mean_square), total(square)


@inlined
def move_chunk(first, second, third, moments, gradients, loop, start, stop, scale, rates, scratch, updates):
    """The updates, by the coordinates' network; returns what they should take off the loss, −Σ ∇ · g.

    `first`, `second` and `third` are one loop's layers; `rates` is the tensor's row of `Work.rates`.
    """
    _give_context(first, rates, scratch.first)
    block, outputs = scratch.block, scratch.outputs
    inverse_root, inverse_mean, rate = rates[0], rates[1], rates[2]
    expected = _zeros()
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _fetch(gradients, loop, begin, count, block, _GRADIENT)
        for row in range(4):
            _fetch(moments, row, begin, count, block, row)
        for j in range(0, count, LANES):
            _features(block, scale, inverse_root, scratch.features, j)
        _layer(scratch.first, scratch.features, count, scratch.hidden, 1)
        _rectify(scratch.hidden, count)
        _layer(second, scratch.hidden, count, scratch.deeper, 1)
        _rectify(scratch.deeper, count)
        _layer(third, scratch.deeper, count, outputs, 0)
        for j in range(0, count, LANES):
            fast_mean = load(block, 0, j)
            gain = ONE + _output(outputs, 0, j) * _SIXTEENTH
            gain = gain * gain
            gain = gain * gain
            gain = gain * gain
            others = _output(outputs, 1, j) * load(block, _SLOW, j)
            others = others + _output(outputs, 2, j) * (inverse_mean * fast_mean)
            others = others + _output(outputs, 3, j) * load(block, _NOW, j)
            others = others + _output(outputs, 4, j) * load(block, _AGILE, j)
            direction = gain * load(block, _FAST, j) + HALF * others
            update = ZERO - rate * clamp(direction, -_LARGEST_STEP, _LARGEST_STEP)
            store(update, block, _UPDATE, j)
            expected = expected - clamp(load(block, _GRADIENT, j), -_LARGEST, _LARGEST) * update
        _put_back(block, _UPDATE, updates, loop, begin, count)
    return total(expected)


@inlined
def _zeros():
    return splat(ZERO)


@inlined
def _follow(mean, value, share):
    return mean + share * (value - mean)


@inlined
def _change(fast_square, slow_square):
    return (fast_square - slow_square) / (fast_square + slow_square + _TINY)


@inlined
def _output(outputs, row, j):
    return clamp(load(outputs, row, j), -_LARGEST_OUTPUT, _LARGEST_OUTPUT)


@inlined
def _features(block, scale, inverse_root, features, j):
    fast_square, slow_square = load(block, 2, j), load(block, 3, j)
    root, agile_root = square_root(slow_square + _TINY), square_root(fast_square + _TINY)
    size = root * inverse_root
    inverses = ONE / (root * agile_root)  # one division for both: it is the slowest of a processor's sums
    inverse, agile_inverse = inverses * agile_root, inverses * root
    fast, slow = load(block, 0, j) * inverse, load(block, 1, j) * inverse
    now = scale * clamp(load(block, _GRADIENT, j), -_LARGEST, _LARGEST) * inverse
    agile = load(block, 0, j) * agile_inverse
    store(fast, block, _FAST, j)
    store(slow, block, _SLOW, j)
    store(now, block, _NOW, j)
    store(agile, block, _AGILE, j)
    store(_magnitude(fast), features, 1, j)
    store(_magnitude(slow), features, 2, j)
    store(_magnitude(now), features, 3, j)
    store(_magnitude(agile), features, 4, j)
    store(clamp(fast * slow, -_LARGEST_PRODUCT, _LARGEST_PRODUCT), features, 5, j)
    store(clamp(now * fast, -_LARGEST_PRODUCT, _LARGEST_PRODUCT), features, 6, j)
    store(_change(fast_square, slow_square), features, 7, j)
    store(size / (ONE + size), features, 8, j)


@inlined
def _magnitude(x):
    return clamp(absolute(x), ZERO, _LARGEST_FEATURE)


@inlined
def _give_context(first, rates, target):
    for group in range(target.shape[0]):
        target[group] = first[group]
        for row in range(ROWS):
            unit = ROWS * group + row
            target[group, row] = rates[3 + unit] if 3 + unit < rates.shape[0] else ZERO


@inlined
def _layer(weights, inputs, count, outputs, row):
    depth = weights.shape[1] // ROWS
    for group in range(weights.shape[0]):
        for j in range(0, count, TILE):
            matrix_tile(weights, group, depth, inputs, j, outputs, row + ROWS * group)


@inlined
def _rectify(hidden, count):
    for row in range(1, hidden.shape[0]):
        for j in range(0, count, LANES):
            store(clamp(load(hidden, row, j), ZERO, _INFINITY), hidden, row, j)


@inlined
def _fetch(source, row, start, count, block, target):
    # zeros behind the last, which add nothing to any sum
    whole = count - count % LANES
    for j in range(0, whole, LANES):
        store(load(source, row, start + j), block, target, j)
    if whole < count:
        store(_zeros(), block, target, whole)
        for j in range(whole, count):
            block[target, j] = source[row, start + j]


@inlined
def _put_back(block, source, target, row, start, count):
    whole = count - count % LANES
    for j in range(0, whole, LANES):
        store(load(block, source, j), target, row, start + j)
    for j in range(whole, count):
        target[row, start + j] = block[source, j]
