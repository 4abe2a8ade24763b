"""The CPU kernel of the recurrent optimizers: the sums of their torch modules, a page of 256 coordinates at a time.

All that a page needs stays in the first-level cache, no array is allocated, and the interpreter's lock is released. A
page is stepped by the same instructions whatever is stepped beside it, so its result depends on nothing but itself.
Numba compiles it at its first call and caches the machine code on disk; `fused.compile_kernels` does so beforehand.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import numpy as np
from numba import njit
from numpy.typing import NDArray

from optserve_server.optimizers.base import PAGE, Phi

Float32s = NDArray[np.float32]

_compile = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
_compile_inline = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy", inline="always")

# tanh as a rational function on ±7.905, 3e-7 from the true one: the coefficients of Eigen's `ptanh_float`
# (Eigen/src/Core/MathFunctionsImpl.h).
_LIMIT = np.float32(7.90531110763549805)
_P1, _P3 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04)
_P5, _P7 = np.float32(1.48572235717979e-05), np.float32(5.12229709037114e-08)
_P9, _P11 = np.float32(-8.60467152213735e-11), np.float32(2.00018790482477e-13)
_P13 = np.float32(-2.76076847742355e-16)
_Q0, _Q2 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
_Q4, _Q6 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_ROW_STEP, _COLUMN_STEP = 2, 4  # weights that are held in registers at once: 2 rows of 4


@_compile_inline
def _tanh(x):
    x = min(max(x, -_LIMIT), _LIMIT)
    y = x * x
    p = x * (_P1 + y * (_P3 + y * (_P5 + y * (_P7 + y * (_P9 + y * (_P11 + y * _P13))))))
    return p / (_Q0 + y * (_Q2 + y * (_Q4 + y * _Q6)))


@_compile_inline
def _sigmoid(x):
    return _HALF + _HALF * _tanh(_HALF * x)


@_compile
def _matrix_product(weight, bias, inputs, output):
    """output = weight @ inputs + bias; [R, K], [R], [K, 256] → [R, 256]; R even and K a multiple of 4."""
    for r in range(0, weight.shape[0], _ROW_STEP):
        for j in range(PAGE):
            output[r, j] = bias[r]
            output[r + 1, j] = bias[r + 1]
        for k in range(0, weight.shape[1], _COLUMN_STEP):
            a0, a1, a2, a3 = weight[r, k], weight[r, k + 1], weight[r, k + 2], weight[r, k + 3]
            b0, b1, b2, b3 = weight[r + 1, k], weight[r + 1, k + 1], weight[r + 1, k + 2], weight[r + 1, k + 3]
            for j in range(PAGE):
                x0, x1, x2, x3 = inputs[k, j], inputs[k + 1, j], inputs[k + 2, j], inputs[k + 3, j]
                output[r, j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                output[r + 1, j] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3


@_compile
def _lstm_stack(weights, biases, sizes, joined, gates, page, first):
    """All layers: `joined[:F]` holds the inputs, `page[first:]` the state, which is replaced.

    Returns the row of `page` where the last layer's hidden state begins.
    """
    hidden = gates.shape[0] // 4
    row = first
    for layer in range(weights.shape[0]):
        if layer:
            joined[:hidden] = page[row - 2 * hidden : row - hidden]
        width = sizes[layer]
        joined[width : width + hidden] = page[row : row + hidden]
        joined[width + hidden :] = _ZERO
        _matrix_product(weights[layer], biases[layer], joined, gates)
        for u in range(hidden):
            for j in range(PAGE):
                i, f = _sigmoid(gates[u, j]), _sigmoid(gates[hidden + u, j])
                g, o = _tanh(gates[2 * hidden + u, j]), _sigmoid(gates[3 * hidden + u, j])
                c = f * page[row + hidden + u, j] + i * g
                page[row + hidden + u, j] = c
                page[row + u, j] = o * _tanh(c)
        row += 2 * hidden
    return row - 2 * hidden


@_compile
def _output(weight, bias, page, row, updates):
    """updates = w·h + b, h being the rows of `page` from `row` on."""
    for j in range(PAGE):
        updates[j] = bias
    for u in range(weight.shape[0]):
        for j in range(PAGE):
            updates[j] += weight[u] * page[row + u, j]


@_compile
def _log_sign(gradients, smallest, p, inputs):
    for j in range(PAGE):
        magnitude = abs(gradients[j])
        if magnitude >= smallest:
            inputs[0, j] = np.log(magnitude) / p
            inputs[1, j] = np.sign(gradients[j])
        else:
            inputs[0, j] = -_ONE
            inputs[1, j] = gradients[j] / smallest


@_compile
def step_lstm_pages(arena, numbers, gradients, weights, biases, sizes, output, bias, scale, smallest, p, updates):
    """The `lstm` on pages `numbers` of `arena`, in place; `smallest` e^{−p}, or 0 for no preprocessing."""
    hidden = output.shape[0]
    joined = np.empty((weights.shape[2], PAGE), np.float32)
    gates = np.empty((4 * hidden, PAGE), np.float32)
    for index in range(numbers.shape[0]):
        page = arena[numbers[index]]
        if smallest > _ZERO:
            _log_sign(gradients[index], smallest, p, joined)
        else:
            joined[0] = gradients[index]
        row = _lstm_stack(weights, biases, sizes, joined, gates, page, 0)
        _output(output, bias, page, row, updates[index])
        for j in range(PAGE):
            updates[index, j] *= scale


@_compile
def step_rnnprop_pages(
    arena, numbers, gradients, corrections, projection, shift, weights, biases, sizes, output, bias, scale, beta,
    epsilon, largest, updates,
):  # fmt: skip
    """`rnnprop` on pages `numbers` of `arena`, in place; `corrections` `[pages, 256]` is 1 − β^{t+1}."""
    hidden = output.shape[0]
    joined = np.empty((weights.shape[2], PAGE), np.float32)
    gates = np.empty((4 * hidden, PAGE), np.float32)
    inputs = np.empty((2, PAGE), np.float32)
    for index in range(numbers.shape[0]):
        page = arena[numbers[index]]
        for j in range(PAGE):
            gradient, correction = min(max(gradients[index, j], -largest), largest), corrections[index, j]
            m = gradient + beta * (page[0, j] - gradient)
            v = gradient * gradient + beta * (page[1, j] - gradient * gradient)
            page[0, j], page[1, j] = m, v
            inverse = _ONE / np.sqrt(v / correction + epsilon * epsilon)
            inputs[0, j], inputs[1, j] = m / correction * inverse, gradient * inverse
        for u in range(projection.shape[0]):
            for j in range(PAGE):
                x = shift[u] + projection[u, 0] * inputs[0, j] + projection[u, 1] * inputs[1, j]
                t = _tanh(_HALF * min(x, _ZERO))
                joined[u, j] = max(x, _TWO * t / (_ONE - t))  # elu: e^x − 1 = 2t/(1 − t) with t = tanh(x/2)
        row = _lstm_stack(weights, biases, sizes, joined, gates, page, 2)
        _output(output, bias, page, row, updates[index])
        for j in range(PAGE):
            updates[index, j] = -scale * _tanh(updates[index, j])


def pack_cells(phi: Phi, layers: int) -> tuple[Float32s, Float32s, NDArray[np.int64]]:
    """The cells' weights as the kernels read them: `[layers, 4H, K]`, `[layers, 4H]`, and each layer's input width.

    W_ih and W_hh lie side by side, padded with zeros to the widest layer and to a multiple of 4.
    """
    parts = [[phi[f"cells.{layer}.{part}"].numpy() for part in ("weight_ih", "weight_hh")] for layer in range(layers)]
    sizes = np.array([inputs.shape[1] for inputs, _ in parts], np.int64)
    rows, hidden = parts[0][1].shape
    width = -(-(int(sizes.max()) + hidden) // _COLUMN_STEP) * _COLUMN_STEP
    weights = np.zeros((layers, rows, width), np.float32)
    for layer, (from_inputs, from_hidden) in enumerate(parts):
        weights[layer, :, : sizes[layer]] = from_inputs
        weights[layer, :, sizes[layer] : sizes[layer] + hidden] = from_hidden
    biases = np.stack([(phi[f"cells.{n}.bias_ih"] + phi[f"cells.{n}.bias_hh"]).numpy() for n in range(layers)])
    return weights, biases, sizes
