"""What a session has in memory while it is awake: h_t, the clocks, θ, and its last step."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire.gradients import STORAGE, widen
from optserve.wire.guard import GuardNote
from optserve_server.optimizers import Observations, Optimizer, Updates
from optserve_server.optimizers.base import PAGE
from optserve_server.optimizers.guard import GUARD_VERSION
from optserve_server.optimizers.serving import kernel_identity, kernel_name
from optserve_server.sessions.errors import (
    HyperparametersInvalid,
    ParametersNeeded,
    StepConflict,
)
from optserve_server.sessions.guarding import Guard
from optserve_server.sessions.history import HISTORY_BYTES, History, norm
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import FLOAT_BYTES, Arena, StateMemory
from optserve_server.sessions.parallel import step_in_shares
from optserve_server.sessions.plan import Plan, ServedVersion, configured
from optserve_server.sessions.steps import Numbers, StepGradients, collect, spread
from optserve_server.sessions.storage.records import digest
from optserve_server.sessions.whole import ArrayLayout, Arrays, step_whole

INLINE_COORDINATES = 2048
"""Up to here a session's work is done on the event loop. The hop to a thread and back takes 0.1 ms, as much as such a
step of a cheap optimizer; the dearest takes about 3 ms for as many coordinates."""

INLINE_TENSORS = 16
"""Up to here the same where a torch module steps the session as a whole: each tensor costs it some 0.1 ms."""


class Awake:
    """The awake part of a session. Its methods are called one at a time, by whoever holds the session's turn.

    h_t is in the arena's pages `pages` and, where the optimizer is not coordinatewise, in `arrays`; `clocks` counts for
    each parameter the steps it has taken, and `next_step` is the only step that comes next. It is ahead of the
    session's own between the moment when a step is computed and the one when it can be replied to.
    """

    def __init__(
        self,
        version: ServedVersion,
        optimizer: Optimizer,
        layout: Layout,
        plan: Plan,
        arena: Arena,
        memory: StateMemory,
    ) -> None:
        """Allocate h_0 = 0.

        Raises:
            StateTooLarge: there is no room for it.
        """
        self.version = version
        self.optimizer = optimizer  # the version's, with the session's hyperparameters
        self.layout = layout
        self.dtype = plan.dtype
        self.arena = arena
        self.next_step = 0
        self.clocks = np.zeros(len(layout.parameters), np.int64)
        self.theta: Tensor | None = None  # [pages, 256]
        self.last: tuple[StepGradients, NDArray[Any]] | None = None  # the last step and its updates, as they travel
        self.history = History()
        self.replay_seconds = 0.0  # of computation, since the state that a snapshot has
        self.is_approximate = False  # whether it was replayed with other bits, and nobody has been told
        self.closed = False
        self._horizon = None if plan.horizon is None else torch.tensor(float(plan.horizon))
        self._memory = memory
        self._vector_bytes = layout.pages * PAGE * FLOAT_BYTES
        self.array_layout = ArrayLayout(optimizer, layout)
        self.guard = None if plan.guard is None else Guard(plan.guard, self.array_layout)
        # What `last` keeps, the history, the arrays, what a step takes, and the names.
        of_arrays = self.array_bytes + self.array_layout.scratch_bytes
        self._own_bytes = 2 * self._vector_bytes + HISTORY_BYTES + of_arrays + layout.own_bytes
        with memory.reserved(self._own_bytes):
            self.pages = arena.allocate(layout.pages)
        self.arrays = self.array_layout.initial()
        self.guard_notes: tuple[GuardNote, ...] = ()  # of the last step

    @property
    def kernel(self) -> str:
        """Names whose bits the updates have."""
        own = kernel_identity(self.optimizer.kind)
        return own if self.guard is None else f"{own}, guard {GUARD_VERSION}"

    @property
    def step_bytes(self) -> int:
        """How many bytes the gradients of a step have, as they travel."""
        return self.layout.coordinates * STORAGE[self.dtype].itemsize

    @property
    def state_bytes(self) -> int:
        """About how many bytes a snapshot has."""
        return self.layout.pages * self.arena.page_bytes + self.array_bytes + 2 * self.step_bytes

    # --- arrays: the optimizer's and the guard's ----------------------------------------------------------------------

    @property
    def array_sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of all arrays by name."""
        return self.array_layout.sizes | ({} if self.guard is None else self.guard.sizes)

    @property
    def array_columns(self) -> dict[str, list[int]]:
        """How many columns each parameter has in the arrays of tensors, by the array's name."""
        return self.array_layout.columns | ({} if self.guard is None else self.guard.columns)

    @property
    def all_arrays(self) -> Arrays:
        """All arrays by name."""
        return self.arrays | ({} if self.guard is None else self.guard.arrays)

    @property
    def array_bytes(self) -> int:
        """What they take."""
        return sum(rows * columns * FLOAT_BYTES for rows, columns in self.array_sizes.values())

    def updates_digest(self) -> int:
        """The digest of the last updates, 0 for none."""
        return 0 if self.last is None else digest(self.last[1].data)

    @property
    def is_small(self) -> bool:
        """Whether its work is so short that it is done on the event loop."""
        by_module = not self.optimizer.coordinatewise and kernel_name(self.optimizer.kind) == "torch"
        few = not by_module or len(self.layout.parameters) <= INLINE_TENSORS
        return few and self.layout.coordinates <= INLINE_COORDINATES

    # --- steps --------------------------------------------------------------------------------------------------------

    def repeated(self, number: int, gradients: StepGradients) -> NDArray[Any] | None:
        """The updates once more if this is the last step, sent again with the same gradients; None if it is next.

        Raises:
            StepConflict: neither.
        """
        if number == self.next_step:
            return None
        if self.last is not None and number == self.next_step - 1:
            before, updates = self.last
            if gradients.same_as(before):
                return updates
        raise StepConflict(number, self.next_step)

    def observe(self, gradients: StepGradients) -> Observations:
        """What the optimizer is told at the next step; nothing is changed.

        Raises:
            GradientsInvalid: a gradient is not finite.
            ParametersNeeded: the optimizer needs θ first.
        """
        if self.theta is None and "parameters" in self.optimizer.needs:
            raise ParametersNeeded(
                f"{self.version.name!r} with these hyperparameters needs the parameters' values θ: "
                "send them once with PUT …/parameters; the server follows them from then on."
            )
        return Observations(
            torch.from_numpy(gradients.pages()),
            self._clock(),
            self.theta,
            loss=None if gradients.loss is None else torch.tensor(gradients.loss),
            horizon=self._horizon,
        )

    def take(self, gradients: StepGradients, observations: Observations) -> NDArray[Any]:
        """Take the next step: the updates g_t of the selected parameters, one after another, as they travel."""
        begun = time.thread_time()
        selection = gradients.selection
        computed, seen = self._computed(gradients, observations).numpy(), observations.gradients.numpy()
        self._tick(selection.skipped)
        self.guard_notes = self._guarded(computed, seen, gradients)
        sent = collect(computed, selection, self.dtype)
        updates = widen(sent, self.dtype)
        if self.theta is not None:
            self.theta += torch.from_numpy(spread(updates, selection)).view_as(self.theta)
        self.history.add(self.next_step, gradients.loss, norm(seen), norm(updates))
        if self.guard_notes:
            self.history.note(self.next_step, self.guard_notes)
        self.last = (gradients, sent)
        self.next_step += 1
        self.replay_seconds += time.thread_time() - begun
        return sent

    def _computed(self, gradients: StepGradients, observations: Observations) -> Updates:
        """g_t, `[pages, 256]`; h_t is h_{t+1} afterwards."""
        phi, selection = self.version.phi, gradients.selection
        if self.optimizer.coordinatewise:
            active = selection.active()
            return step_in_shares(self.optimizer, phi, self.arena.pages, self.pages, observations, active)
        updates, self.arrays = step_whole(
            self.array_layout, phi, self.arena, self.pages, self.arrays, observations, selection
        )
        return updates

    def _guarded(
        self, updates: NDArray[np.float32], seen: NDArray[np.float32], gradients: StepGradients
    ) -> tuple[GuardNote, ...]:
        """Let the guard replace, in place, what it refuses; updates and gradients (`seen`) are `[pages, 256]`."""
        if self.guard is None:
            return ()
        state = (self.arena, self.pages, self.arrays, self.clocks)
        return self.guard.step(updates, seen, gradients.loss, gradients.selection, *state)

    def _clock(self) -> Tensor:
        first = self.clocks[0]
        if (self.clocks == first).all():
            return torch.tensor([float(first)])
        sizes = [parameter.size for parameter in self.layout.parameters]
        clock = torch.zeros(self.layout.pages * PAGE)
        clock[: self.layout.coordinates] = torch.from_numpy(np.repeat(self.clocks, sizes).astype(np.float32))
        return clock.view(-1, PAGE)

    def _tick(self, skipped: frozenset[str]) -> None:
        if not skipped:
            self.clocks += 1
            return
        self.clocks += np.array([parameter.name not in skipped for parameter in self.layout.parameters])

    # --- parameters and hyperparameters -------------------------------------------------------------------------------

    def put_parameters(self, numbers: Numbers) -> None:
        """Take θ, every parameter, which is finite; the steps to come follow it.

        Raises:
            StateTooLarge: there is no room for θ.
        """
        self.hold_theta(torch.from_numpy(numbers.flat().copy()).view(-1, PAGE))

    def hold_theta(self, theta: Tensor | None) -> None:
        """Replace θ, `[pages, 256]`.

        Raises:
            StateTooLarge: there is no room for it.
        """
        change = (theta is not None) - (self.theta is not None)
        if change > 0:
            self._memory.reserve(self._vector_bytes)
        elif change < 0:
            self._memory.release(self._vector_bytes)
        self.theta = theta

    def configured(self, changes: dict[str, Any]) -> Optimizer:
        """The optimizer with other hyperparameters, between two steps; nothing is changed yet.

        Raises:
            HyperparametersInvalid: an unknown one, a wrong value, or one that would change what h_t is made of.
        """
        optimizer = configured(self.optimizer, changes)
        if optimizer.features != self.optimizer.features:
            raise HyperparametersInvalid(
                f"{', '.join(sorted(changes))} would change what the hidden state is made of, from "
                f"{_listed(self.optimizer.features)} to {_listed(optimizer.features)}; create a new session for that."
            )
        return optimizer

    # --- life ---------------------------------------------------------------------------------------------------------

    def go_on_from(self, next_step: int, clocks: NDArray[np.int64], arrays: Arrays) -> None:
        """Let `next_step` come next, from these arrays and the hidden state that was just put into the pages.

        Of the guard's arrays those that are missing begin at 0.

        What was before is not known: the history is empty.
        """
        self.next_step = next_step
        self.clocks = clocks
        self.arrays = {name: arrays[name] for name in self.array_layout.sizes}
        if self.guard is not None:
            self.guard.take_up(arrays)
        self.history = History()
        self.last = None
        self.guard_notes = ()

    def close(self) -> None:
        """Give all memory back; this part is of no use any more."""
        if self.closed:
            return
        self.closed = True
        self.hold_theta(None)
        self.arena.free(self.pages)
        self._memory.release(self._own_bytes)
        self.arrays = {}
        self.last = None


def _listed(features: tuple[str, ...]) -> str:
    return ", ".join(features) or "nothing"
