"""Functions of vectors: activations, and what the optimizers do to a gradient before their network sees it."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import numpy as np

from optserve_server.optimizers.kernels.compiling import inlined
from optserve_server.optimizers.kernels.vectors import clamp, exponent, mantissa

# tanh(x) = x P(x²)/Q(x²) on ±7.9, beyond which it is ±1 in float32: the best fit of these degrees, to 3e-7 of its value
# in float32 arithmetic. σ(x) = ½ + ½ tanh(x/2) has the same coefficients but for powers of 4.
_LIMIT = np.float32(7.9)
_P = (1.0, 1.3444451987743378e-1, 3.5716965794563293e-3, 2.190342638641596e-5, 1.5259695729241685e-8)
_Q = (1.0, 4.6777772903442383e-1, 2.6164414361119270e-2, 3.411743964534253e-4, 8.530553259333828e-7)
_P0, _P1, _P2, _P3, _P4 = map(np.float32, _P)
_Q0, _Q1, _Q2, _Q3, _Q4 = map(np.float32, _Q)
_A0, _A1, _A2, _A3, _A4 = (np.float32(value / 4 ** (power + 1)) for power, value in enumerate(_P))
_B0, _B1, _B2, _B3, _B4 = (np.float32(value / 4**power) for power, value in enumerate(_Q))

# ln(1 + x) / x³ − (1/x² − 1/(2x)) on [√½ − 1, √2 − 1]: the coefficients of Cephes' `logf`.
_L0, _L1, _L2 = np.float32(3.3333331174e-1), np.float32(-2.4999993993e-1), np.float32(2.0000714765e-1)
_L3, _L4, _L5 = np.float32(-1.6668057665e-1), np.float32(1.4249322787e-1), np.float32(-1.2420140846e-1)
_L6, _L7, _L8 = np.float32(1.1676998740e-1), np.float32(-1.1514610310e-1), np.float32(7.0376836292e-2)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2, and the first is short

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_FAR = np.float32(-1e30)


@inlined
def _tanh_fraction(x):
    x = clamp(x, -_LIMIT, _LIMIT)
    y = x * x
    p = _P0 + y * (_P1 + y * (_P2 + y * (_P3 + y * _P4)))
    return x * p, _Q0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * _Q4)))


@inlined
def _sigmoid_fraction(x):
    # σ(x) − ½
    x = clamp(x, -TWO * _LIMIT, TWO * _LIMIT)
    y = x * x
    p = _A0 + y * (_A1 + y * (_A2 + y * (_A3 + y * _A4)))
    return x * p, _B0 + y * (_B1 + y * (_B2 + y * (_B3 + y * _B4)))


@inlined
def tanh(x):
    """tanh(x), to 3e-7 of its value."""
    p, q = _tanh_fraction(x)
    return p / q


@inlined
def sigmoids(a, b):
    """σ(a) and σ(b), which share a division: it is the slowest of a processor's sums."""
    (pa, qa), (pb, qb) = _sigmoid_fraction(a), _sigmoid_fraction(b)
    inverse = ONE / (qa * qb)
    return HALF + pa * (inverse * qb), HALF + pb * (inverse * qa)


@inlined
def sigmoid_and_tanh(a, b):
    """σ(a) and tanh(b), which share a division."""
    (pa, qa), (pb, qb) = _sigmoid_fraction(a), _tanh_fraction(b)
    inverse = ONE / (qa * qb)
    return HALF + pa * (inverse * qb), pb * (inverse * qa)


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
