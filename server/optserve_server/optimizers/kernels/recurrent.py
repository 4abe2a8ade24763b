"""One step of a recurrent optimizer, forward: the sums of its torch module, a block of 64 coordinates at a time."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import NamedTuple

import numpy as np

from optserve_server.optimizers.kernels.compiling import compiled, kernel
from optserve_server.optimizers.kernels.functions import ONE, ZERO, elu, logarithm, sigmoid_and_tanh, sigmoids, tanh
from optserve_server.optimizers.kernels.networks import IDENTITY, LOG_SIGN, Float32s, multiple
from optserve_server.optimizers.kernels.products import BLOCK, COLUMNS, TILE, matrix_tile
from optserve_server.optimizers.kernels.vectors import (
    LANES,
    absolute,
    clamp,
    copy_sign,
    load,
    splat,
    square_root,
    store,
    where_at_least,
)

INPUT_ROWS = multiple(3, COLUMNS)  # two inputs and a one, and what fills a tile
_LINE = 16  # numbers in a line of the cache


class Scratch(NamedTuple):
    """What a block's step leaves behind for its derivative, of a few steps in turn.

    `inputs` `[steps, columns, 64]`: what the projection sees, with a row of ones. `joined` `[layers, steps, K, 64]`,
    `gates` `[layers, steps, 4H, 64]`: i, f, g, o of each unit. `cells` `[layers, steps, 2H, 64]`: c_{t−1}, tanh(c_t).
    """

    inputs: Float32s
    joined: Float32s
    gates: Float32s
    cells: Float32s


@compiled
def aligned(shape):
    """An array that begins with a line of the cache: a vector across two lines takes twice as long to load."""
    size = 1
    for length in shape:
        size *= length
    memory = np.empty(size + _LINE, np.float32)
    first = (-(memory.ctypes.data // 4)) % _LINE
    return memory[first : first + size].reshape(shape)


@compiled
def make_scratch(network, steps):
    """A `Scratch` for `steps` steps."""
    layers, hidden, width = network.cells.shape
    inputs = aligned((steps, INPUT_ROWS, BLOCK))
    joined = aligned((layers, steps, width // 4, BLOCK))
    inputs[:], joined[:] = ZERO, ZERO
    for step in range(steps):
        inputs[step, 2] = ONE
        for layer in range(layers):
            joined[layer, step, hidden + network.widths[layer]] = ONE
    gates = aligned((layers, steps, 4 * hidden, BLOCK))
    cells = aligned((layers, steps, 2 * hidden, BLOCK))
    return Scratch(inputs, joined, gates, cells)


@compiled
def step_block(network, page, following, column, gradients, corrections, index, scratch, step):
    """Step the 64 coordinates from `column` on: their h_t in `page` `[features, …]` to h_{t+1} in `following`.

    Both may be one page. Their gradients and corrections 1 − β^{t+1} are `[index, column:]` of those; `scratch` is left
    as step `step`.
    """
    hidden = network.cells.shape[1]
    _prepare_inputs(network, page, following, column, gradients, corrections, index, scratch, step)
    row = network.rows
    for layer in range(network.cells.shape[0]):
        joined = scratch.joined[layer, step]
        _copy(page, row, column, joined, 0, hidden)
        if layer:
            _copy(following, row - 2 * hidden, column, joined, hidden, hidden)
        depth = hidden + network.widths[layer] + 1
        gates, cells = scratch.gates[layer, step], scratch.cells[layer, step]
        _step_cells(network.cells[layer], depth, joined, page, following, row, column, gates, cells)
        row += 2 * hidden


@compiled
def read_out(network, page, column):
    """w·h + b of the coordinates `column` to `column + LANES` of a page that has been stepped."""
    hidden = network.cells.shape[1]
    row = page.shape[0] - 2 * hidden
    output = splat(network.readout[hidden])
    for unit in range(hidden):
        output = output + network.readout[unit] * load(page, row + unit, column)
    return output


@compiled
def _copy(source, row, column, target, target_row, rows):
    for r in range(rows):
        for j in range(0, BLOCK, LANES):
            store(load(source, row + r, column + j), target, target_row + r, j)


@compiled
def _step_cells(weights, depth, joined, page, following, row, column, gates, cells):
    # (i, f, g, o) = W [h; x; 1],    c' = σ(f) c + σ(i) tanh(g),    h' = σ(o) tanh(c')
    hidden = weights.shape[0]
    for unit in range(hidden):
        for j in range(0, BLOCK, TILE):
            matrix_tile(weights, unit, depth, joined, j, gates, 4 * unit)
        for j in range(0, BLOCK, LANES):
            i, f = sigmoids(load(gates, 4 * unit, j), load(gates, 4 * unit + 1, j))
            g = tanh(load(gates, 4 * unit + 2, j))
            before = load(page, row + hidden + unit, column + j)
            store(f * before + i * g, following, row + hidden + unit, column + j)
            store(i, gates, 4 * unit, j)
            store(f, gates, 4 * unit + 1, j)
            store(g, gates, 4 * unit + 2, j)
            store(before, cells, 2 * unit, j)
        for j in range(0, BLOCK, LANES):  # apart, so that none waits for its own sums
            cell = load(following, row + hidden + unit, column + j)
            o, squashed = sigmoid_and_tanh(load(gates, 4 * unit + 3, j), cell)
            store(o * squashed, following, row + unit, column + j)
            store(o, gates, 4 * unit + 3, j)
            store(squashed, cells, 2 * unit + 1, j)


@compiled
def _prepare_inputs(network, page, following, column, gradients, corrections, index, scratch, step):
    hidden, joined = network.cells.shape[1], scratch.joined[0, step]
    for j in range(0, BLOCK, LANES):
        gradient = load(gradients, index, column + j)
        if network.inputs == IDENTITY:
            store(gradient, joined, hidden, j)
        elif network.inputs == LOG_SIGN:
            _log_sign(network.constants, gradient, joined, hidden, j)
        else:
            correction = load(corrections, index, column + j)
            _moments(network.constants, gradient, correction, page, following, column, scratch.inputs[step], j)
    if network.inputs > LOG_SIGN:
        inputs = scratch.inputs[step]
        for row in range(network.projection.shape[0]):
            weights = network.projection[row]
            for j in range(0, BLOCK, LANES):
                x = weights[0] * load(inputs, 0, j) + weights[1] * load(inputs, 1, j) + weights[2]
                store(elu(x), joined, hidden + row, j)


@compiled
def _log_sign(constants, gradient, joined, row, j):
    # (ln|∇|/p, sign ∇) where |∇| ≥ e^{−p}, else (−1, e^p ∇)
    smallest, p = constants[0], constants[1]
    magnitude = absolute(gradient)
    large = clamp(magnitude, smallest, np.float32(np.inf))
    store(where_at_least(magnitude, smallest, logarithm(large) / p, splat(-ONE)), joined, row, j)
    store(where_at_least(magnitude, smallest, copy_sign(splat(ONE), gradient), gradient / smallest), joined, row + 1, j)


@compiled
def _moments(constants, gradient, correction, page, following, column, inputs, j):
    # (m̂/√v̂, ∇/√v̂) with the running moments m and v, which are the first rows of a page
    beta, tiny, largest = constants[0], constants[1], constants[2]
    gradient = clamp(gradient, -largest, largest)
    square = gradient * gradient
    m = gradient + beta * (load(page, 0, column + j) - gradient)
    v = square + beta * (load(page, 1, column + j) - square)
    store(m, following, 0, column + j)
    store(v, following, 1, column + j)
    inverse = ONE / square_root(v / correction + tiny)
    store(m / correction * inverse, inputs, 0, j)
    store(gradient * inverse, inputs, 1, j)


@kernel
def step_pages(network, arena, following, numbers, gradients, corrections, updates):
    """Step the pages `numbers` of `arena` `[capacity, features, width]` to those of `following`; in place if it is one.

    `gradients`, `corrections` and `updates` are `[len(numbers), width]`; the width is a multiple of 64.
    """
    scratch = make_scratch(network, 1)
    for index in range(numbers.shape[0]):
        page, stepped = arena[numbers[index]], following[numbers[index]]
        for column in range(0, arena.shape[2], BLOCK):
            step_block(network, page, stepped, column, gradients, corrections, index, scratch, 0)
        for column in range(0, arena.shape[2], LANES):
            output = read_out(network, stepped, column)
            update = ZERO - network.scale * tanh(output) if network.bounded else network.scale * output
            store(update, updates, index, column)
