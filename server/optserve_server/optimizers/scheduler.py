"""The scheduler of `hierarchical`: a small recurrent network that sets the rate of each parameter tensor."""

from typing import NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers.base import Phi
from optserve_server.optimizers.cells import tanh, uniform
from optserve_server.optimizers.layers import linear

INPUTS = (
    "fast alignment now",
    "fast alignment",
    "slow alignment",
    "session alignment",
    "fast signal",
    "slow signal",
    "change of variance",
    "size",
    "trend of the loss",
    "depth of the loss",
    "steps to zero loss",
    "achieved descent",
    "loss is known",
    "progress",
    "remaining",
    "length",
    "horizon is declared",
    "newness",
    "beginning",
    "base",
    "steepness",
    "coordinates",
    "tensors",
    "descent achieved lately",
)
"""What it sees, in the order of the rows of its inputs."""

LOWEST, HIGHEST = -9.0, 5.0  # of the level's share in the log of a rate
LARGEST_DRIFT = 5.0


class Schedule(NamedTuple):
    """What the scheduler says of each tensor, and what it remembers."""

    hidden: Tensor  # [..., size, K]
    drift: Tensor  # [..., 1, K], a part of the log of the rate
    log_rate: Tensor  # [..., 1, K], beside the base that the losses give


def schedule(phi: Phi, inputs: Tensor, hidden: Tensor, drift: Tensor, share: Tensor) -> Schedule:
    """One step, for inputs y `[…, INPUTS, K]`; `share` is 1/T, `[…, 1, 1]`, and 0 once the horizon is passed.

    z = σ(W_z y + U_z h + b_z),   h' = h + z (tanh(W_c y + U_c h + b_c) − h)                a gated unit
    I' = I + 5/T · tanh(2 w_I·(h', y) + b_I),   |I'| ≤ 5                                      drifts over the whole run
    ln rate = I' + 2 (w_l·(h', y) + b_l), the latter from −9 to 5                            answers at once
    """
    seen = torch.cat((hidden, inputs), dim=-2)
    gate = torch.sigmoid(linear(phi, "scheduler.gate", seen))
    candidate = tanh(linear(phi, "scheduler.candidate", seen))
    hidden = torch.lerp(hidden, candidate, gate)
    seen = torch.cat((hidden, inputs), dim=-2)
    step = 5 * share * tanh(2 * linear(phi, "rate.drift", seen))
    drift = (drift + step).clamp(-LARGEST_DRIFT, LARGEST_DRIFT)
    level = (2 * linear(phi, "rate.level", seen)).clamp(LOWEST, HIGHEST)
    return Schedule(hidden, drift, drift + level)


def initial_scheduler_phi(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random gates, of which some keep for long, and a rate that rises over some ten steps, then falls to 0 at T.

    That is ln rate = ln((T − t)/T) − 3 e^{−t/4}; the drift and what depends on h begin at 0.
    """
    rows = size + len(INPUTS)
    level = torch.zeros(1, rows)
    level[0, size + INPUTS.index("remaining")] = 2.0
    level[0, size + INPUTS.index("beginning")] = -1.5
    return {
        "scheduler.gate.weight": uniform(generator, rows, size, rows),
        "scheduler.gate.bias": torch.linspace(-4, 1, size),
        "scheduler.candidate.weight": uniform(generator, rows, size, rows),
        "scheduler.candidate.bias": torch.zeros(size),
        "rate.drift.weight": torch.zeros(1, rows),
        "rate.drift.bias": torch.zeros(1),
        "rate.level.weight": level,
        "rate.level.bias": torch.zeros(1),
    }
