"""Serving an optimizer: a coordinatewise one on pages of any sessions, in place; any other a session at a time.

A page is 256 coordinates, feature-major: `[features, 256]`. Every page is stepped by the same operations whatever else
is in the batch, so that its result depends on nothing but itself. The recurrent optimizers and `hierarchical` have
kernels of their own; all others run their torch module, pages in small groups that stay in the cache.
"""

from collections.abc import Sequence

import numba
import torch
from torch import Tensor

from optserve_server.optimizers.base import PAGE, HiddenState, Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.fused import FUSED, KERNEL_VERSION, compile_kernels, step_fused
from optserve_server.optimizers.fused_hierarchy import HIERARCHY_VERSION, compile_hierarchy, step_hierarchy
from optserve_server.optimizers.hierarchical import Hierarchical
from optserve_server.optimizers.kernels.guard import compile_guard

IN_NUMBA = {**dict.fromkeys(FUSED, KERNEL_VERSION), Hierarchical.kind: HIERARCHY_VERSION}
"""The kinds that have a kernel, and its version."""

_GROUP_BYTES = 1 << 19  # of hidden state; measured best between 2^18 and 2^20 on 2 MB of second-level cache


def pages_for(coordinates: int) -> int:
    """How many pages hold that many coordinates."""
    return -(-coordinates // PAGE)


def kernel_name(kind: str) -> str:
    """What steps an optimizer of this kind: `numba` or `torch`."""
    return "numba" if kind in IN_NUMBA else "torch"


def kernel_identity(kind: str) -> str:
    """Names whose bits the updates of an optimizer of this kind have on this machine: two of one name give the same."""
    torch_here = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    return f"numba {numba.__version__} kernel {IN_NUMBA[kind]}, {torch_here}" if kind in IN_NUMBA else torch_here


def compile_served() -> None:
    """Compile all that serves, or read it from the cache: 20 seconds the first time on a machine, then 0.2 s."""
    compile_kernels()
    compile_hierarchy()
    compile_guard()


def step_session(
    optimizer: Optimizer, phi: Phi, observations: Observations, state: HiddenState
) -> tuple[Updates, HiddenState]:
    """`optimizer.step` of all tensors of a session, float32 on the CPU; it may change `state.coordinates`.

    Gradients are `[n]` and coordinates `[features, n]`, both contiguous: a kernel is compiled for no others.
    """
    if optimizer.kind == Hierarchical.kind:
        return step_hierarchy(phi, observations, state)
    with torch.no_grad():
        return optimizer.step(phi, observations, state)


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
    with torch.no_grad():
        if active is None:
            return _step(optimizer, phi, arena, numbers, observations)
        return _step_active(optimizer, phi, arena, numbers, observations, active)


def _step(optimizer: Optimizer, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    if optimizer.kind in FUSED:
        return step_fused(optimizer, phi, arena, numbers, observations)
    return _step_module(optimizer, phi, arena, numbers, observations)


def _step_active(
    optimizer: Optimizer, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations, active: Tensor
) -> Updates:
    # Pages without an active coordinate are left alone. Those in which some stand still, at most two for each skipped
    # parameter, are the only ones of which a copy is made.
    updates = torch.zeros_like(observations.gradients)
    whole = active.all(dim=1)
    if whole.any():
        updates[whole] = _step(optimizer, phi, arena, numbers[whole], _rows(observations, whole))
    partly = active.any(dim=1) & ~whole
    if partly.any():
        index, mask = numbers[partly], active[partly]
        before = arena[index]
        updates[partly] = torch.where(mask, _step(optimizer, phi, arena, index, _rows(observations, partly)), 0.0)
        arena[index] = torch.where(mask.unsqueeze(-2), arena[index], before)
    return updates


def _step_module(optimizer: Optimizer, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    updates = torch.empty_like(observations.gradients)
    group = max(1, _GROUP_BYTES // (4 * PAGE * max(1, len(optimizer.features))))
    for start in range(0, len(numbers), group):
        rows = slice(start, start + group)
        index = numbers[rows]
        before = HiddenState(arena[index], {})
        updates[rows], (arena[index], _) = optimizer.step(phi, _rows(observations, rows), before)
    return updates


def _rows(observations: Observations, rows: slice | Tensor) -> Observations:
    clock, parameters = observations.clock, observations.parameters
    return Observations(
        gradients=observations.gradients[rows],
        clock=clock if clock.dim() == 1 else clock[rows],
        parameters=None if parameters is None else parameters[rows],
    )
