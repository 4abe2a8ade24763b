"""f and ∇f of small perceptrons: one inner loop after another, without a graph and without tracing.

To PyTorch a perceptron of some hundred weights is a hundred operations on next to nothing. Here a batch's rows are the
lanes of vectors: activations are `[units, rows]`, rows filled up with zeros to whole vectors, so that a weight is one
number times a vector, forwards and backwards, in the layout that `torch.nn.Linear` gives it.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math
from typing import NamedTuple

import numpy as np

from optserve_server.optimizers.kernels.compiling import inlined, kernel
from optserve_server.optimizers.kernels.functions import HALF, ONE, ZERO, tanh
from optserve_server.optimizers.kernels.networks import Float32s
from optserve_server.optimizers.kernels.recurrent import aligned
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

SIGMOID, TANH, RELU, GELU, SILU = range(5)
CROSS_ENTROPY, SQUARED_ERROR = range(2)
TINY_VARIANCE = np.float32(1e-5)  # beside the variance of a normalised layer, as in `torch.nn.LayerNorm`

_FAR = np.float32(1e30)
_ROOT_HALF, _ROOT_TWO_PI = np.float32(math.sqrt(0.5)), np.float32(1 / math.sqrt(2 * math.pi))
# erf(x) = 1 − (A1 k + … + A5 k⁵) e^{−x²}, k = 1/(1 + P x), x ≥ 0: Abramowitz & Stegun 7.1.26, to 1.5e-7.
_P = np.float32(0.3275911)
_A1, _A2, _A3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
_A4, _A5 = np.float32(-1.453152027), np.float32(1.061405429)


class Desk(NamedTuple):
    """What one thread works with. `hidden`, `slopes` and `flows` are `[layers + 1, widest, rows]`.

    `hidden` are the inputs of each layer, the last its outputs; `slopes` the activations' derivatives, `flows` what
    flows back. `rows` is one layer's inputs by rows, `[rows, widest]`; `theta` and `gradient` are `[n]` and some more.
    """

    hidden: Float32s
    slopes: Float32s
    flows: Float32s
    inverses: Float32s
    rows: Float32s
    theta: Float32s
    gradient: Float32s


@inlined
def _make_desk(sizes, rows, n):
    layers, widest = len(sizes), 0
    for size in sizes:
        widest = max(widest, size)
    widest = (widest + LANES - 1) // LANES * LANES
    shape = (layers * widest, rows)
    hidden, slopes, flows = aligned(shape), aligned(shape), aligned(shape)
    hidden[:] = ZERO
    flows[:] = ZERO
    by_rows = aligned((rows, widest))
    by_rows[:] = ZERO
    return Desk(
        hidden, slopes, flows, aligned((layers, rows)), by_rows, aligned((1, n + LANES)), aligned((1, n + LANES))
    )


@kernel
def losses_and_gradients(
    sizes, activation, normalised, error, theta, scales, inputs, labels, targets, first, last, losses, gradients
):
    """Fill `losses` `[loops]` and `gradients` `[loops, n]` of the loops `first` … `last`.

    `theta` is `[loops, n]`; the tasks' `scales` `[tasks, n]` (or `[0, 0]`), `inputs` `[tasks, rows, features]` and
    `labels` `[tasks, rows]` or `targets` `[tasks, rows, outputs]` are those of loop l at l modulo the tasks.
    """
    tasks, count, n = inputs.shape[0], inputs.shape[1], theta.shape[1]
    rows = (count + LANES - 1) // LANES * LANES
    desk = _make_desk(sizes, rows, n)
    widest = desk.rows.shape[1]
    layers = len(sizes) - 1
    for loop in range(first, last):
        task = loop % tasks
        for i in range(n):
            desk.theta[0, i] = theta[loop, i]
        if len(scales):
            for i in range(n):
                desk.theta[0, i] *= scales[task, i]
        for row in range(count):
            for i in range(sizes[0]):
                desk.hidden[i, row] = inputs[task, row, i]
        _forward(sizes, activation, normalised, desk, rows, widest)
        if error == CROSS_ENTROPY:
            losses[loop] = _cross_entropy(desk, labels, task, count, sizes[layers], layers * widest)
        else:
            losses[loop] = _squared_error(desk, targets, task, count, sizes[layers], layers * widest)
        _backward(sizes, normalised, desk, count, rows, widest)
        for i in range(n):
            gradients[loop, i] = desk.gradient[0, i]
        if len(scales):
            for i in range(n):
                gradients[loop, i] *= scales[task, i]


@inlined
def _forward(sizes, activation, normalised, desk, rows, widest):
    layers, offset = len(sizes) - 1, 0
    for layer in range(layers):
        width, units = sizes[layer], sizes[layer + 1]
        below, above, biases = layer * widest, (layer + 1) * widest, offset + units * width
        for column in range(0, rows, LANES):
            _products(desk.theta, offset, width, 1, units, width, desk.hidden, below, above, column, biases)
            if layer < layers - 1:
                if normalised:
                    _normalise(desk, layer, above, units, column)
                for unit in range(above, above + units):
                    y, slope = _activate(activation, load(desk.hidden, unit, column))
                    store(y, desk.hidden, unit, column)
                    store(slope, desk.slopes, unit, column)
        offset = biases + units


@inlined
def _products(theta, offset, of_output, of_input, outputs, width, arrays, below, above, column, biases):
    """arrays[above + o] = Σ_i θ[offset + o · of_output + i · of_input] arrays[below + i], and θ[biases + o] if any."""
    o = 0
    while o + 4 <= outputs:
        start = offset + o * of_output
        if biases >= 0:
            a, b = splat(theta[0, biases + o]), splat(theta[0, biases + o + 1])
            c, d = splat(theta[0, biases + o + 2]), splat(theta[0, biases + o + 3])
        else:
            a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(width):
            x, at = load(arrays, below + i, column), start + i * of_input
            a = a + theta[0, at] * x
            b = b + theta[0, at + of_output] * x
            c = c + theta[0, at + 2 * of_output] * x
            d = d + theta[0, at + 3 * of_output] * x
        store(a, arrays, above + o, column)
        store(b, arrays, above + o + 1, column)
        store(c, arrays, above + o + 2, column)
        store(d, arrays, above + o + 3, column)
        o += 4
    while o < outputs:
        a = splat(theta[0, biases + o]) if biases >= 0 else splat(ZERO)
        for i in range(width):
            a = a + theta[0, offset + o * of_output + i * of_input] * load(arrays, below + i, column)
        store(a, arrays, above + o, column)
        o += 1


@inlined
def _activate(activation, x):
    """The activation and its derivative."""
    if activation == RELU:
        return clamp(x, ZERO, _FAR), where_at_least(x, np.float32(1e-45), splat(ONE), splat(ZERO))
    if activation == TANH:
        y = tanh(x)
        return y, ONE - y * y
    if activation == GELU:
        z = absolute(x) * _ROOT_HALF
        t = tanh(clamp(x * x * np.float32(0.25), ZERO, np.float32(20)))
        bell = (ONE - t) / (ONE + t)  # e^{−x²/2}
        k = ONE / (ONE + _P * z)
        tail = k * (_A1 + k * (_A2 + k * (_A3 + k * (_A4 + k * _A5)))) * bell
        share = HALF + HALF * copy_sign(ONE - tail, x)
        return x * share, share + _ROOT_TWO_PI * x * bell
    share = HALF + HALF * tanh(HALF * x)
    if activation == SIGMOID:
        return share, share * (ONE - share)
    return x * share, share + x * share * (ONE - share)


@inlined
def _normalise(desk, layer, above, units, column):
    """Mean 0 and variance 1 over a layer's units, row by row."""
    mean, inverse_count = splat(ZERO), ONE / np.float32(units)
    for unit in range(above, above + units):
        mean = mean + load(desk.hidden, unit, column)
    mean = mean * inverse_count
    variance = splat(ZERO)
    for unit in range(above, above + units):
        away = load(desk.hidden, unit, column) - mean
        variance = variance + away * away
    inverse = ONE / square_root(variance * inverse_count + TINY_VARIANCE)
    store(inverse, desk.inverses, layer, column)
    for unit in range(above, above + units):
        away = (load(desk.hidden, unit, column) - mean) * inverse
        store(away, desk.hidden, unit, column)
        store(away, desk.flows, unit, column)  # kept for the way back


@inlined
def _cross_entropy(desk, labels, task, count, classes, top):
    loss, share = 0.0, ONE / np.float32(count)
    for row in range(count):
        label = labels[task, row]
        highest = desk.hidden[top, row]
        for one in range(1, classes):
            highest = max(highest, desk.hidden[top + one, row])
        total = ZERO
        for one in range(classes):
            power = np.exp(desk.hidden[top + one, row] - highest)
            desk.flows[top + one, row] = power
            total += power
        loss += math.log(total) - float(desk.hidden[top + label, row] - highest)
        for one in range(classes):
            desk.flows[top + one, row] *= share / total
        desk.flows[top + label, row] -= share
    return np.float32(loss / count)


@inlined
def _squared_error(desk, targets, task, count, outputs, top):
    loss, share = 0.0, np.float32(2 / (count * outputs))
    for row in range(count):
        for one in range(outputs):
            error = desk.hidden[top + one, row] - targets[task, row, one]
            loss += float(error) * float(error)
            desk.flows[top + one, row] = share * error
    return np.float32(loss / (count * outputs))


@inlined
def _backward(sizes, normalised, desk, count, rows, widest):
    """From the flows at the top down.

    A row of weights is written in whole vectors; what lies behind it is the next row, which comes later, but behind the
    last one the layer above, which has been and is put back.
    """
    layers, end = len(sizes) - 1, 0
    for layer in range(layers):
        end += (sizes[layer] + 1) * sizes[layer + 1]
    for layer in range(layers - 1, -1, -1):
        width, units = sizes[layer], sizes[layer + 1]
        below, above, offset = layer * widest, (layer + 1) * widest, end - (width + 1) * units
        for row in range(count):
            for i in range(width):
                desk.rows[row, i] = desk.hidden[below + i, row]
        of_layer_above = load(desk.gradient, 0, end)
        for unit in range(units):
            for column in range(0, width, LANES):
                flow = splat(ZERO)
                for row in range(count):
                    flow = flow + desk.flows[above + unit, row] * load(desk.rows, row, column)
                store(flow, desk.gradient, 0, offset + unit * width + column)
        store(of_layer_above, desk.gradient, 0, end)
        for unit in range(units):
            flow = ZERO
            for row in range(count):
                flow += desk.flows[above + unit, row]
            desk.gradient[0, offset + units * width + unit] = flow
        if layer:
            _flow_back(normalised, desk, layer, offset, width, units, below, above, rows)
        end = offset


@inlined
def _flow_back(normalised, desk, layer, offset, width, units, below, above, rows):
    for column in range(0, rows, LANES):
        if normalised:  # the normalised values lie where the flows will be
            for i in range(below, below + width):
                store(load(desk.flows, i, column), desk.hidden, i, column)
        _products(desk.theta, offset, 1, width, width, units, desk.flows, above, below, column, -1)
        for i in range(below, below + width):
            store(load(desk.flows, i, column) * load(desk.slopes, i, column), desk.flows, i, column)
        if normalised:
            mean, along = splat(ZERO), splat(ZERO)
            inverse_count = ONE / np.float32(width)
            for i in range(below, below + width):
                mean = mean + load(desk.flows, i, column)
                along = along + load(desk.flows, i, column) * load(desk.hidden, i, column)
            mean, along = mean * inverse_count, along * inverse_count
            inverse = load(desk.inverses, layer - 1, column)
            for i in range(below, below + width):
                away = load(desk.flows, i, column) - mean - along * load(desk.hidden, i, column)
                store(away * inverse, desk.flows, i, column)
