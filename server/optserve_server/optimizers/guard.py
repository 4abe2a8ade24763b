"""The update guard: what it remembers, and its constants. `kernels/guard.py` has its equations.

It looks at what an optimizer wants to do to each parameter tensor, and puts the nominal Adam direction in its place
where that is not finite or too large, or where the loss has risen for long. All that it remembers begins at 0.
"""

from typing import NamedTuple

from optserve_server.optimizers.hierarchical import Hierarchical
from optserve_server.optimizers.small_fc import SmallFC

GUARD_VERSION = 1
"""Goes up with every change that changes a bit of a guarded update: journals name it."""

# --- of a tensor, the rows of `tensors` [ROWS, K], float32 ------------------------------------------------------------

ACCEPTED = 0  # updates that were let through, at most `ENOUGH`
MAGNITUDE = 1  # running mean of their root mean squares, corrected for its bias
REASON = 2  # why the fallback has the tensor, one of those below; 0: it has not
CALM = 3  # steps since its last cause
AFRESH = 4  # whether hidden state of it was started afresh meanwhile
SEEN = 5  # gradients in the guard's own moments of it
TENSOR_ROWS = 6

# --- of the session, the rows of `run` [ROWS, 1], float32 -------------------------------------------------------------

LOSSES = 0  # how many were sent, at most `ENOUGH`
FIRST = 1  # the first of them
MEAN = 2  # running mean, corrected for its bias
DEVIATION = 3  # running mean of twice what a loss lies below that mean: where losses only scatter, of |f − mean|
BEST = 4  # the lowest running mean, or where the loss has stayed since
RISEN = 5  # losses in succession that were above the margin
LEVEL = 6  # the fallback of all tensors: 0 without, n: their magnitude is halved n times
SUNK = 7  # steps in succession below the margin, under that fallback
STAYED = 8  # steps under it, since it began or `BEST` was moved
RUN_ROWS = 9

# --- why and what -----------------------------------------------------------------------------------------------------

NON_FINITE, UPDATE_RMS, LOSS_RISE = 1, 2, 3
REASONS = {NON_FINITE: "non-finite", UPDATE_RMS: "update-rms", LOSS_RISE: "loss-rise"}

FALLBACK, BACK, HELD = 1, 2, 3
EVENTS = {FALLBACK: "fallback", BACK: "back", HELD: "held"}

EVENT, CAUSE, BROKEN = 0, 1, 2
"""The rows of `verdicts` [3, K], int8: what happens to a tensor at this step (0: nothing), why, and whether what the
optimizer wanted was not finite (1), and hidden state of the tensor was not either (`AGAIN`: it begins again at 0)."""
VERDICT_ROWS = 3
AGAIN = 2

# --- constants --------------------------------------------------------------------------------------------------------

BETAS = (0.9, 0.999)  # of the fallback's direction, Adam's
EPSILON = 1e-12  # beside its root mean square: free of scale
LARGEST = 1e15  # a gradient is cut to this: float32 holds its square
FIRST_MAGNITUDE = 1e-3  # of a tensor none of whose updates was ever let through
MAGNITUDE_DECAY = 0.99
LOSS_DECAY = 0.9
LARGEST_LOSS = 1e30  # a loss is cut to this: float32 holds differences of such
DEVIATIONS = 2.0  # of the margin
SHARE = 0.1  # of the margin, of |first − best|
RESOLUTION = 1e-6  # of the margin, of |best|: float32's own
MOST_HALVINGS = 10
STAYS = 4  # times the patience, after which a loss that is no better is the new best
ENOUGH = 10_000  # terms after which no running mean here has a bias left


class AdamMoments(NamedTuple):
    """The features in which an optimizer keeps Adam's running means of ∇ and of ∇², of decays 0.9 and 0.999.

    `clock` is the array of tensors with the steps that they are still to be corrected for; without one they are
    corrected for their bias already.
    """

    mean: str
    square: str
    clock: str | None = None


ADAM_MOMENTS: dict[str, AdamMoments] = {
    Hierarchical.kind: AdamMoments("fast", "slow_square"),
    SmallFC.kind: AdamMoments("momentum.0.9", "square", clock="clock"),
}
"""The kinds of optimizers that have Adam's moments themselves: of theirs the guard keeps none."""
