"""Functions of vectors: activations, and what the optimizers do to a gradient before their network sees it."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import numpy as np

from optserve_server.optimizers.kernels.compiling import inlined
from optserve_server.optimizers.kernels.vectors import clamp, exponent, mantissa

# tanh as a rational function on ±7.905, 3e-7 from the true one: the coefficients of Eigen's `ptanh_float`
# (Eigen/src/Core/MathFunctionsImpl.h).
_LIMIT = np.float32(7.90531110763549805)
_P1, _P3 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04)
_P5, _P7 = np.float32(1.48572235717979e-05), np.float32(5.12229709037114e-08)
_P9, _P11 = np.float32(-8.60467152213735e-11), np.float32(2.00018790482477e-13)
_P13 = np.float32(-2.76076847742355e-16)
_Q0, _Q2 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
_Q4, _Q6 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)

# ln(1 + x) / x³ − (1/x² − 1/(2x)) on [√½ − 1, √2 − 1]: the coefficients of Cephes' `logf`.
_L0, _L1, _L2 = np.float32(3.3333331174e-1), np.float32(-2.4999993993e-1), np.float32(2.0000714765e-1)
_L3, _L4, _L5 = np.float32(-1.6668057665e-1), np.float32(1.4249322787e-1), np.float32(-1.2420140846e-1)
_L6, _L7, _L8 = np.float32(1.1676998740e-1), np.float32(-1.1514610310e-1), np.float32(7.0376836292e-2)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2, and the first is short

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_FAR = np.float32(-1e30)


@inlined
def tanh(x):
    """tanh(x), to 3e-7."""
    x = clamp(x, -_LIMIT, _LIMIT)
    y = x * x
    p = x * (_P1 + y * (_P3 + y * (_P5 + y * (_P7 + y * (_P9 + y * (_P11 + y * _P13))))))
    return p / (_Q0 + y * (_Q2 + y * (_Q4 + y * _Q6)))


@inlined
def sigmoid(x):
    """σ(x) = ½ + ½ tanh(x/2)."""
    return HALF + HALF * tanh(HALF * x)


@inlined
def elu(x):
    """x where it is positive, else e^x − 1 = 2t/(1 − t) with t = tanh(x/2)."""
    t = tanh(HALF * clamp(x, _FAR, ZERO))
    return clamp(x, ZERO, -_FAR) + TWO * t / (ONE - t)


@inlined
def logarithm(x):
    """ln x, to one unit in the last place; x positive and normal."""
    e, r = exponent(x), mantissa(x) - ONE
    high = _L4 + r * (_L5 + r * (_L6 + r * (_L7 + r * _L8)))
    p = r * (r * r) * (_L0 + r * (_L1 + r * (_L2 + r * (_L3 + r * high))))
    return r + (p + e * _LN2_LOW - HALF * (r * r)) + e * _LN2_HIGH
