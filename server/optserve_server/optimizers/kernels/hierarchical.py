"""One step of `hierarchical`, forward: the sums of its torch module, one inner loop after another."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optserve_server.optimizers import directions
from optserve_server.optimizers import hierarchical as module
from optserve_server.optimizers.kernels.compiling import inlined, kernel
from optserve_server.optimizers.kernels.functions import ONE
from optserve_server.optimizers.kernels.hierarchy import SUMS
from optserve_server.optimizers.kernels.hierarchy_coordinates import (
    follow_chunk,
    make_scratch,
    measure_chunk,
    move_chunk,
)
from optserve_server.optimizers.kernels.hierarchy_readings import (
    follow_session,
    follow_together,
    follow_updates,
    limited,
    make_shares,
    own,
    products,
    read_base,
    read_extent,
    read_factors,
    read_rates,
    read_tensor,
    schedule,
)
from optserve_server.optimizers.kernels.networks import Float32s
from optserve_server.optimizers.kernels.recurrent import aligned
from optserve_server.optimizers.scheduler import INPUTS

_RATE = module.RATE
_LEAST_LOG_RATE, _GREATEST_LOG_RATE = module.LOG_RATES
_TINY_SQUARE = directions.EPSILON**2
_INPUTS = len(INPUTS)


class _Desk(NamedTuple):
    """What one thread needs besides: `shares`, `totals` `[K, SUMS]`, the scheduler's inputs and what it works with."""

    shares: NDArray[np.float64]
    totals: NDArray[np.float64]
    inputs: NDArray[np.float64]
    seen: Float32s
    gates: Float32s
    context: Float32s


@inlined
def _make_desk(weights, tensors):
    totals = np.empty((tensors, SUMS), np.float64)
    inputs = np.empty(_INPUTS, np.float64)
    seen = np.empty(weights.gates.shape[1], np.float32)
    gates, context = aligned((1, weights.gates.shape[2])), aligned((1, weights.context.shape[2]))
    return _Desk(make_shares(), totals, inputs, seen, gates, context)


@inlined
def measure_chunks(state, observed, work, loop, first, last, scratch):
    """The first pass over some chunks of a loop."""
    for chunk in range(first, last):
        start, stop = work.chunks[chunk, 1], work.chunks[chunk, 2]
        squares = work.squares[loop, chunk]
        measure_chunk(state.coordinates[loop], observed.gradients, loop, start, stop, scratch, squares)


@inlined
def prepare_tensors(state, work, loop, desk):
    """Between the first pass and the second: the factors of all tensors of a loop."""
    sums = desk.totals
    sums[:, :2] = 0.0
    for chunk in range(work.chunks.shape[0]):
        for part in range(2):
            sums[work.chunks[chunk, 0], part] += work.squares[loop, chunk, part]
    for tensor in range(work.sizes.shape[0]):
        size = np.float64(work.sizes[tensor])
        square, usual = sums[tensor, 0], sums[tensor, 1]
        read_factors(state, loop, tensor, size, square, usual, desk.shares, work.factors[loop, tensor])


@inlined
def follow_chunks(state, observed, work, loop, first, last, scratch):
    """The second pass over some chunks of a loop."""
    for chunk in range(first, last):
        tensor, start, stop = work.chunks[chunk, 0], work.chunks[chunk, 1], work.chunks[chunk, 2]
        factors, sums = work.factors[loop, tensor], work.sums[loop, chunk]
        follow_chunk(state.coordinates[loop], observed.gradients, loop, start, stop, factors, scratch, sums)


@inlined
def decide(weights, state, observed, work, loop, desk):
    """Between the second pass and the third: the scheduler, and the rates of all tensors of a loop; its clocks go on.

    Returns Σ|∇ · Adam's direction|.
    """
    drifting = follow_session(state, observed, loop, desk.shares, desk.inputs)
    totals = desk.totals
    totals[:] = 0.0
    for chunk in range(work.chunks.shape[0]):
        for part in range(SUMS):
            totals[work.chunks[chunk, 0], part] += work.sums[loop, chunk, part]
    product = now = past = slope = 0.0
    for tensor in range(totals.shape[0]):
        product += totals[tensor, 0]
        now += totals[tensor, 2]
        past += totals[tensor, 3]
        slope += totals[tensor, 5]
    together = follow_together(state, loop, product, now, past, desk.shares)
    base = read_base(state.losses[loop], state.descent[loop], slope)
    read_rates(base, state.descent[loop], slope, desk.inputs)
    read_extent(work.sizes, desk.inputs)
    base += state.caution[loop, 0, 0]
    for tensor in range(totals.shape[0]):
        size, sums = np.float64(work.sizes[tensor]), totals[tensor]
        share = np.float64(work.factors[loop, tensor, 5])
        read_tensor(state.alignment[loop], tensor, size, sums, share, together, desk.inputs)
        log_rate = base + schedule(weights, state, loop, tensor, drifting, desk.inputs, desk.seen, desk.gates)
        rates = work.rates[loop, tensor]
        rates[0] = 1 / math.sqrt(sums[10] / size + _TINY_SQUARE)
        rates[1] = 1 / math.sqrt(sums[9] / size + _TINY_SQUARE)
        rates[2] = _RATE * math.exp(limited(log_rate, _LEAST_LOG_RATE, _GREATEST_LOG_RATE))
        _read_context(own(weights.context, loop), desk, rates)
        state.clock[loop, 0, tensor] += ONE
    state.steps[loop, 0, 0] += ONE
    return slope


@inlined
def _read_context(weights, desk, rates):
    # Of the scheduler's h, which the rows of `seen` behind the first are.
    products(weights, desk.seen, desk.context)
    for unit in range(rates.shape[0] - 3):
        rates[3 + unit] = desk.context[0, unit]


@inlined
def move_chunks(weights, state, observed, work, loop, first, last, scratch, updates):
    """The third pass over some chunks of a loop."""
    first_layer, second, third = own(weights.first, loop), own(weights.second, loop), own(weights.third, loop)
    moments, gradients = state.coordinates[loop], observed.gradients
    for chunk in range(first, last):
        tensor, start, stop = work.chunks[chunk, 0], work.chunks[chunk, 1], work.chunks[chunk, 2]
        scale, rates = work.factors[loop, tensor, 0], work.rates[loop, tensor]
        work.expected[loop, chunk] = move_chunk(
            first_layer, second, third, moments, gradients, loop, start, stop, scale, rates, scratch, updates
        )


@inlined
def conclude(state, work, loop, slope):
    """After the third pass."""
    expected = 0.0
    for chunk in range(work.chunks.shape[0]):
        expected += work.expected[loop, chunk]
    follow_updates(state.descent[loop], slope, expected)


@kernel
def step_loops(weights, state, observed, work, first, last, updates):
    """Step the loops `first` to `last`, in place; `updates` is `[loops, n]`."""
    scratch, desk = make_scratch(weights), _make_desk(weights, work.sizes.shape[0])
    chunks = work.chunks.shape[0]
    for loop in range(first, last):
        measure_chunks(state, observed, work, loop, 0, chunks, scratch)
        prepare_tensors(state, work, loop, desk)
        follow_chunks(state, observed, work, loop, 0, chunks, scratch)
        slope = decide(weights, state, observed, work, loop, desk)
        move_chunks(weights, state, observed, work, loop, 0, chunks, scratch, updates)
        conclude(state, work, loop, slope)
