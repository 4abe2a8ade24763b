"""The derivative of a recurrent optimizer's updates by φ over a window of steps, ∂∇_t/∂φ dropped.

Nothing of the way forward is kept but the gradients and, every few steps, the hidden state. From there a block of 64
coordinates is stepped again, and its derivative taken back through those steps, all in the second-level cache. It costs
as much as a second way forward, and less than reading what else would have to be kept: 13 times as many bytes.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import NamedTuple

import numpy as np

from optserve_server.optimizers.kernels.compiling import compiled, kernel
from optserve_server.optimizers.kernels.functions import ONE, ZERO, tanh
from optserve_server.optimizers.kernels.networks import Float32s, Network, multiple
from optserve_server.optimizers.kernels.products import BLOCK, COLUMNS, ROWS, TILE, matrix_tile, outer_tile
from optserve_server.optimizers.kernels.recurrent import INPUT_ROWS, aligned, make_scratch, read_out, step_block
from optserve_server.optimizers.kernels.vectors import LANES, clamp, load, splat, store

SEGMENT = 8
"""Steps from one hidden state that is kept to the next; with 2 layers of 20 units a block needs 0.7 MB for so many."""


class Window(NamedTuple):
    """The steps of a window, what `step_pages` was given, and the cotangents of its updates: `[steps, blocks, 64]`.

    `states` `[segments, blocks, features, 64]` is the hidden state before every `SEGMENT`-th step.
    """

    gradients: Float32s
    corrections: Float32s
    states: Float32s
    cotangents: Float32s


class Derivatives(NamedTuple):
    """By φ, one sum for each chunk of blocks: its first dimension.

    `cells` is `[chunks, layers, 4H, K]`, `projection` `[chunks, rows, columns]` with its rows filled up to a multiple
    of 4, `readout` `[chunks, H + 1, 64]`, still to be summed over the last.
    """

    cells: Float32s
    projection: Float32s
    readout: Float32s


def make_derivatives(network: Network, chunks: int) -> Derivatives:
    """Zeros."""
    layers, hidden, width = network.cells.shape
    return Derivatives(
        np.zeros((chunks, layers, 4 * hidden, width // ROWS), np.float32),
        np.zeros((chunks, multiple(len(network.projection), ROWS), INPUT_ROWS), np.float32),
        np.zeros((chunks, hidden + 1, BLOCK), np.float32),
    )


@kernel
def differentiate(network, transposed, window, first, last, blocks_a_chunk, derivatives):
    """Fill the chunks `first` to `last` of `derivatives`, which are zeros."""
    layers, hidden, _ = network.cells.shape
    scratch = make_scratch(network, SEGMENT)
    projected = aligned((SEGMENT, derivatives.projection.shape[1], BLOCK))
    projected[:] = ZERO
    down = aligned((4 * transposed.shape[1], BLOCK))
    outputs = aligned((SEGMENT, BLOCK))
    above = aligned((2, layers * hidden, BLOCK))
    page = aligned(window.states.shape[2:])
    steps, blocks, _ = window.gradients.shape
    for chunk in range(first, last):
        for block in range(chunk * blocks_a_chunk, min(blocks, (chunk + 1) * blocks_a_chunk)):
            above[:] = ZERO
            for segment in range(window.states.shape[0] - 1, -1, -1):
                start = segment * SEGMENT
                count = min(SEGMENT, steps - start)
                page[:] = window.states[segment, block]
                for step in range(count):
                    gradients, corrections = window.gradients[start + step], window.corrections[start + step]
                    step_block(network, page, page, 0, gradients, corrections, block, scratch, step)
                    cotangents = window.cotangents[start + step]
                    _read_out_backward(network, page, cotangents, block, outputs, step, derivatives.readout[chunk])
                for step in range(count - 1, -1, -1):
                    _step_backward(network, transposed, scratch, step, outputs, above, down, projected)
                _add_products(network, scratch, projected, count, derivatives, chunk)


@kernel
def add_chunks(chunks, total):
    """Add float32 `[chunks, n]` to float64 `[n]`, in their order."""
    for chunk in range(chunks.shape[0]):
        for index in range(chunks.shape[1]):
            total[index] += chunks[chunk, index]


@compiled
def _read_out_backward(network, page, cotangents, block, outputs, step, derivative):
    # `outputs[step]` becomes the cotangent of w·h + b.
    hidden = network.cells.shape[1]
    row = page.shape[0] - 2 * hidden
    for j in range(0, BLOCK, LANES):
        slope = splat(network.scale)
        if network.bounded:  # of −s tanh(z)
            squashed = tanh(read_out(network, page, j))
            slope = network.scale * (squashed * squashed - ONE)
        cotangent = slope * load(cotangents, block, j)
        store(cotangent, outputs, step, j)
        for unit in range(hidden):
            store(load(derivative, unit, j) + cotangent * load(page, row + unit, j), derivative, unit, j)
        store(load(derivative, hidden, j) + cotangent, derivative, hidden, j)


@compiled
def _step_backward(network, transposed, scratch, step, outputs, above, down, projected):
    # `above` holds the cotangents of h_t and of c_t, and afterwards those of h_{t−1} and c_{t−1}.
    layers, hidden, _ = network.cells.shape
    last = (layers - 1) * hidden
    for unit in range(hidden):
        for j in range(0, BLOCK, LANES):
            store(
                load(above[0], last + unit, j) + network.readout[unit] * load(outputs, step, j),
                above[0],
                last + unit,
                j,
            )
    for layer in range(layers - 1, -1, -1):
        gates = scratch.gates[layer, step]
        _cells_backward(gates, scratch.cells[layer, step], above, layer * hidden)
        below = layer > 0 or network.projection.shape[0] > 0
        rows = hidden + network.widths[layer] if below else hidden
        for quad in range((rows + ROWS - 1) // ROWS):
            for j in range(0, BLOCK, TILE):
                matrix_tile(transposed[layer], quad, 4 * hidden, gates, j, down, ROWS * quad)
        for unit in range(hidden):
            for j in range(0, BLOCK, LANES):
                store(load(down, unit, j), above[0], layer * hidden + unit, j)
                if layer:
                    other = (layer - 1) * hidden + unit
                    store(load(above[0], other, j) + load(down, hidden + unit, j), above[0], other, j)
    for row in range(network.projection.shape[0]):
        for j in range(0, BLOCK, LANES):
            # elu' is 1 where elu is positive, else e^x = elu + 1
            slope = ONE + clamp(load(scratch.joined[0, step], hidden + row, j), -ONE, ZERO)
            store(slope * load(down, hidden + row, j), projected[step], row, j)


@compiled
def _cells_backward(gates, cells, above, first):
    # The gates become their cotangents before the activation.
    for unit in range(cells.shape[0] // 2):
        for j in range(0, BLOCK, LANES):
            i, f = load(gates, 4 * unit, j), load(gates, 4 * unit + 1, j)
            g, o = load(gates, 4 * unit + 2, j), load(gates, 4 * unit + 3, j)
            before, squashed = load(cells, 2 * unit, j), load(cells, 2 * unit + 1, j)
            of_hidden = load(above[0], first + unit, j)
            of_cell = load(above[1], first + unit, j) + of_hidden * o * (ONE - squashed * squashed)
            store(of_cell * g * i * (ONE - i), gates, 4 * unit, j)
            store(of_cell * before * f * (ONE - f), gates, 4 * unit + 1, j)
            store(of_cell * i * (ONE - g * g), gates, 4 * unit + 2, j)
            store(of_hidden * squashed * o * (ONE - o), gates, 4 * unit + 3, j)
            store(of_cell * f, above[1], first + unit, j)


@compiled
def _add_products(network, scratch, projected, count, derivatives, chunk):
    # Column by column, for a column of the joined inputs stays in the first-level cache while all gates pass by.
    layers, hidden, _ = network.cells.shape
    for layer in range(layers):
        gates, joined = scratch.gates[layer, :count], scratch.joined[layer, :count]
        for column in range(0, hidden + network.widths[layer] + 1, COLUMNS):
            for row in range(0, 4 * hidden, ROWS):
                outer_tile(gates, row, joined, column, derivatives.cells[chunk, layer])
    for row in range(0, derivatives.projection.shape[1], ROWS):
        for column in range(0, derivatives.projection.shape[2], COLUMNS):
            outer_tile(projected[:count], row, scratch.inputs[:count], column, derivatives.projection[chunk])
