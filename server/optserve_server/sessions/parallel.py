"""One step of a large session on several cores: its pages are shared out, for no page depends on another."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from optserve_server.optimizers import Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.serving import step_pages

PAGES_A_SHARE = 32
"""At least so many pages for each core: with fewer, handing them over costs more than it saves."""

_CORES = os.cpu_count() or 1
_helpers = ThreadPoolExecutor(max_workers=_CORES, thread_name_prefix="pages")


def step_in_shares(
    optimizer: Optimizer,
    phi: Phi,
    arena: Tensor,
    page_numbers: Tensor,
    observations: Observations,
    active: Tensor | None = None,
) -> Updates:
    """`step_pages`, with equal results, on as many cores as the pages are worth."""

    def step(rows: slice) -> Updates:
        part = Observations(
            observations.gradients[rows],
            observations.clock if observations.clock.dim() == 1 else observations.clock[rows],
            None if observations.parameters is None else observations.parameters[rows],
        )
        return step_pages(optimizer, phi, arena, page_numbers[rows], part, None if active is None else active[rows])

    count = len(page_numbers)
    shares = max(1, min(_CORES, count // PAGES_A_SHARE))
    if shares == 1:
        return step(slice(0, count))
    bounds = [count * share // shares for share in range(shares + 1)]
    return torch.cat(_all_done([slice(*pair) for pair in pairwise(bounds)], step))


def _all_done(shares: list[slice], step: Callable[[slice], Updates]) -> list[Updates]:
    futures = [_helpers.submit(step, rows) for rows in shares[1:]]
    try:
        first = step(shares[0])
    finally:
        rest = [future.result() for future in futures]  # whatever happens, no share may be left at work
    return [first, *rest]
