"""The gradients of one parameter group as one flat array, and the updates back into the parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from optserve.errors import GradientsInvalid, ProblemError, RequestInvalid


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one group has to send at one step.

    `parameters` are those that have a gradient, `names` what they are called in the session, `skip` the names of the
    rest. `flat` holds the gradients, [n], float32, on the CPU, and is nobody else's.
    """

    parameters: list[Tensor]
    names: list[str]
    skip: list[str]
    flat: Tensor


def gather(parameters: Sequence[Tensor], names: Sequence[str], maximize: bool = False) -> Gathered | None:
    """The gradients of a group's parameters, negated where it is to `maximize`; None if there are none at all.

    Raises:
        GradientsInvalid: a gradient is sparse.
    """
    present = [(p, name) for p, name in zip(parameters, names, strict=True) if p.grad is not None]
    if not present:
        return None
    skip = [name for p, name in zip(parameters, names, strict=True) if p.grad is None]
    gradients = [_dense(p.grad, name) for p, name in present if p.grad is not None]
    flat = flatten(gradients)
    return Gathered([p for p, _ in present], [name for _, name in present], skip, flat.neg_() if maximize else flat)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors' numbers in one new array: [n], float32, on the CPU."""
    device = tensors[0].device  # gathered there first, so that an accelerator is asked for one copy, not for many
    return torch.cat([t.detach().reshape(-1).to(device, torch.float32) for t in tensors]).cpu()


def apply(updates: Tensor, gathered: Gathered, lr: float, decay: float) -> None:
    """θ ← (1 − decay) · θ + lr · g_t for every parameter that had a gradient; `updates` is g_t, [n], float32."""
    on_device: dict[torch.device, Tensor] = {updates.device: updates}
    start = 0
    for parameter in gathered.parameters:
        device, end = parameter.device, start + parameter.numel()
        if device not in on_device:
            on_device[device] = updates.to(device)
        if decay:
            parameter.mul_(1 - decay)
        parameter.add_(on_device[device][start:end].view(parameter.shape), alpha=lr)
        start = end


def add_decay(gathered: Gathered, decay: float) -> None:
    """∇_t + decay · θ_t, after `first_error`: so a parameter that is not finite is not taken for a gradient.

    Raises:
        RequestInvalid: a parameter is not finite, or too large to be decayed.
    """
    gathered.flat.add_(flatten(gathered.parameters), alpha=decay)
    error = _not_finite(gathered)
    if error is not None:
        raise RequestInvalid(
            f"parameter {error.parameter!r} itself is not finite, or too large for its weight decay in float32, at "
            f"index {error.index}; nothing was changed",
            **error.fields,
        )


def first_error(gathered: Sequence[Gathered], loss: float | None) -> ProblemError | None:
    """What is wrong with the gradients of all groups, and with the loss: a number that is not finite; or None."""
    for one in gathered:
        error = _not_finite(one)
        if error is not None:
            return error
    if loss is not None and not math.isfinite(loss):
        return RequestInvalid(f"the loss is {loss}; nothing was changed")
    return None


def _not_finite(gathered: Gathered) -> GradientsInvalid | None:
    """The error for the first gradient that is not finite in float32; None if all are."""
    finite = torch.isfinite(gathered.flat)
    if finite.all():
        return None
    position = int(torch.argmin(finite.to(torch.uint8)))
    value = gathered.flat[position].item()
    parameters = iter(zip(gathered.parameters, gathered.names, strict=True))
    parameter, name = next(parameters)
    while position >= parameter.numel():
        position -= parameter.numel()
        parameter, name = next(parameters)
    index = [int(i) for i in torch.unravel_index(torch.tensor(position), parameter.shape)]
    return GradientsInvalid(
        f"the gradient of parameter {name!r} is {value} at index {index} (as float32); nothing was changed; "
        "on_nonfinite='skip' leaves such steps out",
        parameter=name,
        index=index,
    )


def _dense(gradient: Tensor, name: str) -> Tensor:
    if gradient.layout != torch.strided:
        raise GradientsInvalid(
            f"the gradient of parameter {name!r} is sparse; make it dense (nn.Embedding(sparse=False))", parameter=name
        )
    return gradient


def loss_in(result: Any) -> float | None:
    """The loss that a closure has returned, if that is a number or a tensor of one; torch lets it return anything."""
    if isinstance(result, Tensor):
        return float(result.detach()) if result.numel() == 1 and not result.is_complex() else None
    return float(result) if isinstance(result, Real) else None


def numbers(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as JSON holds them."""
    return {name: number(value) for name, value in hyperparameters.items()}


def number(value: Any) -> Any:
    """Tensors as Python numbers and tuples as lists: what JSON holds."""
    if isinstance(value, Tensor):
        return value.detach().item()
    if isinstance(value, list | tuple):
        return [number(item) for item in value]
    return value
