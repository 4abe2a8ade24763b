"""What the kernel of `hierarchical` works on: φ, hidden states, what is observed, and what lies between its passes.

Everything has the *inner loops* for its first dimension: the particles of all tasks, each with a φ of its own, or
tasks that share one, or a single session. All is float32, the chunks and sizes int64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optserve_server.optimizers.kernels.networks import Float32s

Int64s = NDArray[np.int64]

SUMS = 11
"""Sums over a tensor's coordinates that a step reads."""
FACTORS = 6
"""What a tensor is followed with: the spike's scale, the newest shares of the four moments, that of its cosines."""


class Weights(NamedTuple):
    """φ, of each inner loop or one of all.

    The coordinates' layers are `[…, groups, 4·(1 + inputs)]`, four rows of the matrix interleaved, the bias before the
    inputs; that of the `first` is overwritten by each tensor's context. `context` is `[…, 1 + S, H]` and `gates`
    `[…, 1 + S + 24, 2S]`, transposed, the bias in the first row, rows as long as whole vectors; of `gates` the first S
    columns are the gate's and the next the candidate's. `rates` is `[…, 2, 1 + S + 24]`: drift and level.
    """

    first: Float32s
    second: Float32s
    third: Float32s
    context: Float32s
    gates: Float32s
    rates: Float32s


class State(NamedTuple):
    """h_t: `[loops, rows, n]` of the coordinates, `[loops, rows, K]` of tensors, `[loops, rows, 1]` of the loop."""

    coordinates: Float32s
    clock: Float32s
    scheduler: Float32s
    drift: Float32s
    alignment: Float32s
    steps: Float32s
    losses: Float32s
    descent: Float32s
    caution: Float32s
    common_alignment: Float32s


class Observed(NamedTuple):
    """∇_t `[loops, n]`, and f(θ_t) and T, each `[loops]`, or empty where they are not known."""

    gradients: Float32s
    losses: Float32s
    horizons: Float32s


class Work(NamedTuple):
    """What lies between the passes of a step.

    `chunks` `[C, 3]`: tensor, start and stop of pieces of the coordinates, each of one tensor; `sizes` `[K]`. Of each
    loop: `squares` `[C, 2]` and `sums` `[C, SUMS]` over a chunk, `expected` `[C]` what its updates should take off the
    loss; `factors` `[K, FACTORS]`, and `rates` `[K, 3 + H]`: the inverses of two root mean squares, the rate, the
    context.
    """

    chunks: Int64s
    sizes: Int64s
    squares: Float32s
    sums: Float32s
    expected: Float32s
    factors: Float32s
    rates: Float32s
