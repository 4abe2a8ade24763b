"""Serving an optimizer on pages: the hidden states of any sessions, stepped in place in one arena.

A page is 256 coordinates, feature-major: `[features, 256]`. Pages are stepped in small groups that stay in the cache,
and every page by the same operations whatever else is in its group, so that its result depends on nothing but itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from optserve_server.optimizers.base import Observations, Optimizer, Phi, Updates

PAGE = 256  # coordinates
KERNEL = "torch"
_GROUP_BYTES = 1 << 19  # of hidden state; measured best between 2^18 and 2^20 on 2 MB of second-level cache


def pages_for(coordinates: int) -> int:
    """How many pages hold that many coordinates."""
    return -(-coordinates // PAGE)


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
    the update is 0.
    """
    updates = torch.empty_like(observations.gradients)
    numbers = torch.as_tensor(page_numbers, dtype=torch.int64)
    group = max(1, _GROUP_BYTES // (4 * PAGE * max(1, len(optimizer.features))))
    with torch.no_grad():
        for start in range(0, len(page_numbers), group):
            rows = slice(start, start + group)
            index = numbers[rows]
            state = arena[index]
            part, following = optimizer.step(phi, _rows(observations, rows), state)
            if active is not None:
                part = torch.where(active[rows], part, 0.0)
                following = torch.where(active[rows].unsqueeze(-2), following, state)
            updates[rows] = part
            arena[index] = following
    return updates


def _rows(observations: Observations, rows: slice) -> Observations:
    clock, parameters = observations.clock, observations.parameters
    return Observations(
        gradients=observations.gradients[rows],
        clock=clock if clock.dim() == 1 else clock[rows],
        parameters=None if parameters is None else parameters[rows],
    )
