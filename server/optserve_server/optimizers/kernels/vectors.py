"""Vectors for Numba: the float32 numbers that one instruction of the processor works on.

Left to itself LLVM vectorises few of the kernels' loops, since it cannot tell that their arrays do not overlap, and
uses half of AVX-512's width. Written with these vectors the same sums are three times as fast. They are values: `load`
and `store` move them, and `+ - * /` work between vectors and with a float32 number, which stands for a vector of it.
"""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import operator

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model
from numba.np.arrayobj import make_array

from optserve_server.optimizers.kernels.compiling import intrinsic


def _lanes() -> int:
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


LANES = _lanes()
"""Numbers in a vector, a divisor of 64."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
CONTRACTED = ("contract",)
"""A product and a sum after it may be one instruction, rounded once."""
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_SQRT_HALF = 0x3F3504F3  # the bits of √½


class VectorType(types.Type):
    """Numba's type of a vector."""

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, VECTOR)


def int64(value):
    """A constant, in LLVM's terms."""
    return ir.Constant(ir.IntType(64), value)


def pointer(builder, base, offset):
    """To the vector `offset` bytes after `base`."""
    return builder.bitcast(
        builder.gep(builder.bitcast(base, ir.IntType(8).as_pointer()), [offset]), VECTOR.as_pointer()
    )


def address(context, builder, array_type, array, *indices):
    """Of an element of a float32 array whose last dimension is contiguous; missing indices are 0. With its strides."""
    struct = make_array(array_type)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, struct.strides)
    offset = int64(0)
    for index, stride in zip(indices, strides, strict=False):
        offset = builder.add(offset, builder.mul(index, stride))
    return pointer(builder, struct.data, offset), strides


def full(builder, number):
    """A vector of one number."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * LANES))


@intrinsic
def load(_, array, row, column):
    """The vector at `array[row, column:]`."""

    def code(context, builder, signature, arguments):
        place, _ = address(context, builder, signature.args[0], *arguments)
        return builder.load(place, align=4)

    return vector(array, types.intp, types.intp), code


@intrinsic
def store(_, value, array, row, column):
    """`array[row, column:] = value`."""

    def code(context, builder, signature, arguments):
        place, _ = address(context, builder, signature.args[1], *arguments[1:])
        builder.store(arguments[0], place, align=4)
        return context.get_dummy_value()

    return types.void(vector, array, types.intp, types.intp), code


@intrinsic
def splat(_, number):
    """A vector full of a float32 number."""
    return vector(types.float32), lambda _context, builder, _signature, arguments: full(builder, arguments[0])


def _arithmetic(operation, instruction):
    @intrinsic
    def both(_, left, right):
        def code(_context, builder, _signature, arguments):
            return getattr(builder, instruction)(*arguments, flags=CONTRACTED)

        return vector(vector, vector), code

    def vectors(left, right):
        return both(left, right)

    def vector_and_number(left, right):
        return both(left, splat(right))

    def number_and_vector(left, right):
        return both(splat(left), right)

    choices = {
        (vector, vector): vectors,
        (vector, types.float32): vector_and_number,
        (types.float32, vector): number_and_vector,
    }
    overload(operation)(lambda left, right: choices.get((left, right)))


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@intrinsic
def clamp(_, x, low, high):
    """`x`, but at least `low` and at most `high`, float32 numbers; NaN stays NaN."""

    def code(_context, builder, _signature, arguments):
        value, low, high = arguments[0], full(builder, arguments[1]), full(builder, arguments[2])
        value = builder.select(builder.fcmp_ordered(">", low, value), low, value)
        return builder.select(builder.fcmp_ordered("<", high, value), high, value)

    return vector(vector, types.float32, types.float32), code


@intrinsic
def where_at_least(_, x, bound, yes, no):
    """`yes` where x ≥ `bound`, a float32 number, else `no`."""

    def code(_context, builder, _signature, arguments):
        x, bound, yes, no = arguments
        return builder.select(builder.fcmp_ordered(">=", x, full(builder, bound)), yes, no)

    return vector(vector, types.float32, vector, vector), code


def _of_llvm(name, count):
    """One of LLVM's own functions of `count` vectors."""
    function_type = ir.FunctionType(VECTOR, [VECTOR] * count)
    full_name = f"llvm.{name}.v{LANES}f32"

    def code(_context, builder, _signature, arguments):
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, full_name), arguments)

    return code


@intrinsic
def absolute(_, x):
    """|x|."""
    return vector(vector), _of_llvm("fabs", 1)


@intrinsic
def square_root(_, x):
    """√x."""
    return vector(vector), _of_llvm("sqrt", 1)


def sum_of_lanes(builder, value):
    """The sum of a vector's numbers, in LLVM's terms."""
    function_type = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(function, [ir.Constant(FLOAT, -0.0), value], fastmath=("reassoc",))


@intrinsic
def total(_, x):
    """The sum of x's numbers, a float32 number."""
    return types.float32(vector), lambda _context, builder, _signature, arguments: sum_of_lanes(builder, arguments[0])


@intrinsic
def copy_sign(_, magnitude, sign):
    """`magnitude` with the sign of `sign`."""
    return vector(vector, vector), _of_llvm("copysign", 2)


def _exponent_bits(builder, x):
    bits = builder.sub(builder.bitcast(x, _INTEGERS), ir.Constant(_INTEGERS, [_SQRT_HALF] * LANES))
    return builder.ashr(bits, ir.Constant(_INTEGERS, [23] * LANES))


@intrinsic
def exponent(_, x):
    """e of x = m · 2^e with m in [√½, √2), as a float; x positive and normal."""
    return vector(vector), lambda _context, builder, _signature, arguments: builder.sitofp(
        _exponent_bits(builder, arguments[0]), VECTOR
    )


@intrinsic
def mantissa(_, x):
    """m of x = m · 2^e with m in [√½, √2); x positive and normal."""

    def code(_context, builder, _signature, arguments):
        shift = builder.shl(_exponent_bits(builder, arguments[0]), ir.Constant(_INTEGERS, [23] * LANES))
        return builder.bitcast(builder.sub(builder.bitcast(arguments[0], _INTEGERS), shift), VECTOR)

    return vector(vector), code
