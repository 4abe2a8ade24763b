"""Serving an optimizer on pages: the hidden states of any sessions, stepped in place in one arena.

A page is 256 coordinates, feature-major: `[features, 256]`. Every page is stepped by the same operations whatever else
is in the batch, so that its result depends on nothing but itself. The recurrent optimizers have a kernel of their own;
all others run their torch module, on small groups of pages that stay in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from optserve_server.optimizers.base import PAGE, Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.fused import FUSED

_GROUP_BYTES = 1 << 19  # of hidden state; measured best between 2^18 and 2^20 on 2 MB of second-level cache


def pages_for(coordinates: int) -> int:
    """How many pages hold that many coordinates."""
    return -(-coordinates // PAGE)


def kernel_name(kind: str) -> str:
    """What steps the pages of an optimizer of this kind: `numba` or `torch`."""
    return "numba" if kind in FUSED else "torch"


def step_pages(
    optimizer: Optimizer,
    phi: Phi,
    arena: Tensor,
    page_numbers: Sequence[int] | Tensor,
    observations: Observations,
    active: Tensor | None = None,
) -> Updates:
    """Step the pages `page_numbers` of `arena` in place and return their updates, `[pages, 256]`.

    `arena` is `[capacity, features, 256]`; `observations.gradients` and `.parameters` are `[pages, 256]`, and
    `observations.clock` that or `[1]`. Where `active` (bool, `[pages, 256]`) is false the hidden state stands still and
    the update is 0. All are float32 on the CPU.
    """
    numbers = torch.as_tensor(page_numbers, dtype=torch.int64)
    before = None if active is None else arena[numbers]
    with torch.no_grad():
        if optimizer.kind in FUSED:
            updates = FUSED[optimizer.kind](optimizer, phi, arena, numbers, observations)
        else:
            updates = _step_module(optimizer, phi, arena, numbers, observations)
    if active is None or before is None:
        return updates
    arena[numbers] = torch.where(active.unsqueeze(-2), arena[numbers], before)
    return torch.where(active, updates, 0.0)


def _step_module(optimizer: Optimizer, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    updates = torch.empty_like(observations.gradients)
    group = max(1, _GROUP_BYTES // (4 * PAGE * max(1, len(optimizer.features))))
    for start in range(0, len(numbers), group):
        rows = slice(start, start + group)
        index = numbers[rows]
        updates[rows], arena[index] = optimizer.step(phi, _rows(observations, rows), arena[index])
    return updates


def _rows(observations: Observations, rows: slice) -> Observations:
    clock, parameters = observations.clock, observations.parameters
    return Observations(
        gradients=observations.gradients[rows],
        clock=clock if clock.dim() == 1 else clock[rows],
        parameters=None if parameters is None else parameters[rows],
    )
