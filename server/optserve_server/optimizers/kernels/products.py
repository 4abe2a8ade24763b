"""The two matrix products of the kernels, a tile at a time: all of a tile's sums stay in the processor's registers.

On AVX-512 they run at nine tenths of the processor's peak, where BLAS libraries reach between a half and three quarters
on matrices as small as these.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from optserve_server.optimizers.kernels.compiling import intrinsic
from optserve_server.optimizers.kernels.vectors import (
    CONTRACTED,
    FLOAT,
    LANES,
    VECTOR,
    address,
    full,
    int64,
    pointer,
    sum_of_lanes,
)

BLOCK = 64
"""Coordinates that are worked on at once; the rows of all operands are so long."""
ROWS = 4
"""Rows of a tile: the gates of one unit."""
_VECTORS = 2 if LANES == 8 else 4  # of a row in a tile of `matrix_tile`: AVX2 has 16 registers, the others 32
TILE = _VECTORS * LANES
"""Coordinates of a tile of `matrix_tile`, a divisor of 64."""
COLUMNS = 2 if LANES == 8 else 6
"""Columns of a tile of `outer_tile`."""


def _accumulators(builder, count):
    places = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
    for place in places:
        builder.store(ir.Constant(VECTOR, [0.0] * LANES), place)
    return places


def _accumulate(builder, place, left, right):
    product = builder.fmul(left, right, flags=CONTRACTED)
    builder.store(builder.fadd(builder.load(place), product, flags=CONTRACTED), place)


def _load(builder, base, offset):
    return builder.load(pointer(builder, base, offset), align=4)


@intrinsic
def matrix_tile(_, weights, group, depth, inputs, column, output, row):
    """output[row + r, column + j] = Σ_k weights[group, 4k + r] · inputs[k, column + j], for 4 r and `TILE` j.

    `weights` is `[groups, 4·depth or more]`: four rows of the matrix, interleaved. `inputs` and `output` are `[…, 64]`.
    """
    integer = types.intp
    signature = types.void(weights, integer, integer, inputs, integer, output, integer)

    def code(context, builder, signature, arguments):
        weights, group, depth, inputs, column, output, row = arguments
        weight, _ = address(context, builder, signature.args[0], weights, group)
        weight = builder.bitcast(weight, FLOAT.as_pointer())
        first, strides = address(context, builder, signature.args[3], inputs, int64(0), column)
        sums = _accumulators(builder, ROWS * _VECTORS)
        with cgutils.for_range(builder, depth) as loop:
            offset = builder.mul(loop.index, strides[0])
            terms = [_load(builder, first, builder.add(offset, int64(4 * LANES * part))) for part in range(_VECTORS)]
            for r in range(ROWS):
                place = builder.gep(weight, [builder.add(builder.mul(loop.index, int64(ROWS)), int64(r))])
                factor = full(builder, builder.load(place))
                for part, term in enumerate(terms):
                    _accumulate(builder, sums[r * _VECTORS + part], factor, term)
        target, strides = address(context, builder, signature.args[5], output, row, column)
        for r in range(ROWS):
            for part in range(_VECTORS):
                offset = builder.add(builder.mul(strides[0], int64(r)), int64(4 * LANES * part))
                value = builder.load(sums[r * _VECTORS + part])
                builder.store(value, pointer(builder, target, offset), align=4)
        return context.get_dummy_value()

    return signature, code


@intrinsic
def outer_tile(_, left, row, right, column, output):
    """output[row + r, column + c] += Σ_s Σ_j left[s, row + r, j] · right[s, column + c, j], for 4 r and `COLUMNS` c.

    `left` is `[steps, rows, 64]` and `right` `[steps, columns, 64]`.
    """
    signature = types.void(left, types.intp, right, types.intp, output)

    def code(context, builder, signature, arguments):
        left, row, right, column, output = arguments
        steps = cgutils.unpack_tuple(builder, make_array(signature.args[0])(context, builder, left).shape)[0]
        first_left, left_strides = address(context, builder, signature.args[0], left, int64(0), row)
        first_right, right_strides = address(context, builder, signature.args[2], right, int64(0), column)
        sums = _accumulators(builder, ROWS * COLUMNS)
        with cgutils.for_range(builder, steps) as loop:
            lefts = pointer(builder, first_left, builder.mul(loop.index, left_strides[0]))
            rights = pointer(builder, first_right, builder.mul(loop.index, right_strides[0]))
            for part in range(BLOCK // LANES):
                terms = [_load(builder, lefts, int64(4 * (BLOCK * r + LANES * part))) for r in range(ROWS)]
                for c in range(COLUMNS):
                    factor = _load(builder, rights, int64(4 * (BLOCK * c + LANES * part)))
                    for r, term in enumerate(terms):
                        _accumulate(builder, sums[r * COLUMNS + c], term, factor)
        target, strides = address(context, builder, signature.args[4], output, row, column)
        for r in range(ROWS):
            for c in range(COLUMNS):
                offset = builder.add(builder.mul(strides[0], int64(r)), int64(4 * c))
                place = builder.bitcast(pointer(builder, target, offset), FLOAT.as_pointer())
                total = builder.load(sums[r * COLUMNS + c])
                builder.store(builder.fadd(builder.load(place), sum_of_lanes(builder, total)), place)
        return context.get_dummy_value()

    return signature, code
