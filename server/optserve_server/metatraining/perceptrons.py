"""f and ∇f of a group of perceptrons by their kernel, where it has one."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from optserve_server.metatraining import perceptron_kernel as kernel
from optserve_server.optimizers.cores import share_out
from optserve_server.tasks.base import Batch
from optserve_server.tasks.networks import Activation, Error, Perceptron

if TYPE_CHECKING:
    from optserve_server.metatraining.trajectories import Group

_ACTIVATIONS: dict[Activation, int] = {
    "sigmoid": kernel.SIGMOID,
    "tanh": kernel.TANH,
    "relu": kernel.RELU,
    "gelu": kernel.GELU,
    "silu": kernel.SILU,
}
_ERRORS: dict[Error, int] = {"cross-entropy": kernel.CROSS_ENTROPY, "squared-error": kernel.SQUARED_ERROR}
_LEAST_WEIGHTS = 4096  # for another core
_NO_SCALES, _NO_LABELS = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int64)
_NO_TARGETS = np.zeros((0, 0, 0), np.float32)


def perceptron_of(group: "Group", batch: Batch) -> Perceptron | None:
    """What the kernel can compute of this group: float32 on a CPU; None where its f is anything else."""
    form = getattr(group.family, "perceptron", None)
    if not isinstance(form, Perceptron):
        return None
    floats = [group.theta, batch[form.inputs]]
    if form.error == "squared-error":
        floats.append(batch[form.targets])
    fits = all(type(one) is Tensor and one.dtype == torch.float32 and one.device.type == "cpu" for one in floats)
    return form if fits else None


def losses_and_gradients(form: Perceptron, group: "Group", batch: Batch) -> tuple[Tensor, Tensor]:
    """f(θ_t) on `batch`, `[loops]`, and ∇_t, `[loops, n]`."""
    theta = group.theta.detach().contiguous()
    losses, gradients = theta.new_empty(len(theta)), torch.empty_like(theta)
    labels, targets = _NO_LABELS, _NO_TARGETS
    if form.error == "cross-entropy":
        labels = batch[form.targets].contiguous().numpy()
    else:
        targets = batch[form.targets].reshape(*batch[form.inputs].shape[:2], -1).contiguous().numpy()
    arguments = (
        np.array(form.sizes, np.int64),
        _ACTIVATIONS[form.activation],
        form.normalised,
        _ERRORS[form.error],
        theta.numpy(),
        _NO_SCALES if group.scales is None else group.scales.contiguous().numpy(),
        batch[form.inputs].contiguous().numpy(),
        labels,
        targets,
    )

    def work(first: int, last: int) -> None:
        kernel.losses_and_gradients(*arguments, first, last, losses.numpy(), gradients.numpy())

    share_out(torch.get_num_threads(), len(theta), -(-_LEAST_WEIGHTS // theta.shape[1]), work)
    return losses, gradients
