"""Which tasks are finite, and what the optimizer may see of their gradients: on a CPU in one pass."""

# Numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import numpy as np

from optserve_server.optimizers.kernels.compiling import kernel

LARGEST = 1e15
"""A trajectory whose loss, gradient or θ grows beyond this counts as not finite: in float32 its square soon is not."""

_LARGEST = np.float32(LARGEST)


@kernel
def admit(theta, losses, gradients, finite, admitted, shown):
    """Fill `admitted` `[tasks]` and `shown` `[tasks, n]`, from what was `finite` before.

    A task is admitted while θ_t, f(θ_t) and ∇_t are all below `LARGEST`; of others zeros are shown.
    """
    for task in range(len(theta)):
        fine = finite[task] and abs(losses[task]) < _LARGEST
        for i in range(theta.shape[1]):
            fine &= abs(theta[task, i]) < _LARGEST
            fine &= abs(gradients[task, i]) < _LARGEST
        admitted[task] = fine
        for i in range(theta.shape[1]):
            shown[task, i] = gradients[task, i] if fine else np.float32(0.0)
