"""One training loop's session: its hidden state h_t under one optimizer version, and the order of its steps."""

import asyncio
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire.gradients import widen
from optserve_server.optimizers import Observations, Optimizer, Updates, hyperparameters
from optserve_server.optimizers.base import PAGE
from optserve_server.sessions.checkpoints import Checkpoint, Checkpoints
from optserve_server.sessions.errors import (
    HyperparametersInvalid,
    ParametersInvalid,
    ParametersNeeded,
    StepConflict,
)
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import FLOAT_BYTES, Arena, StateMemory
from optserve_server.sessions.parallel import step_in_shares
from optserve_server.sessions.plan import Plan, ServedVersion, configured, require_label, require_ttl
from optserve_server.sessions.steps import StepGradients, collect, require_finite, spread
from optserve_server.sessions.whole import ArrayLayout, Arrays, step_whole


class Session:
    """A session. Its methods are called one at a time, by whoever holds its `turn`.

    h_t is in the arena's pages `pages` and, where the optimizer is not coordinatewise, in `arrays`; `clocks` counts for
    each parameter the steps it has taken, and `next_step` is the only step that comes next.
    """

    def __init__(
        self,
        number: int,
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
        self.id = secrets.token_hex(16)
        self.number = number  # in the order of creation
        self.version = version
        self.optimizer = optimizer  # the version's, with the session's hyperparameters
        self.layout = layout
        self.dtype = plan.dtype
        self.horizon = plan.horizon
        self.label = plan.label
        self.created_at = datetime.now(UTC)
        self.turn = asyncio.Lock()
        self.closed = False
        self.next_step = 0
        self.clocks = np.zeros(len(layout.parameters), np.int64)
        self.theta: Tensor | None = None  # [pages, 256]
        self.arena = arena
        self.checkpoints = Checkpoints(arena, memory)
        self._memory = memory
        self._last: tuple[StepGradients, NDArray[Any]] | None = None  # the last step and its updates, as they travel
        self._vector_bytes = layout.pages * PAGE * FLOAT_BYTES
        self.array_layout = ArrayLayout(optimizer, layout)
        # What `_last` keeps, the arrays, and what a step takes.
        self._own_bytes = 2 * self._vector_bytes + self.array_layout.bytes + self.array_layout.scratch_bytes
        with memory.reserved(self._own_bytes):
            self.pages = arena.allocate(layout.pages)
        self.arrays = self.array_layout.initial()
        self.prolong(plan.ttl_seconds)

    # --- steps --------------------------------------------------------------------------------------------------------

    def step(self, number: int, gradients: StepGradients) -> NDArray[Any]:
        """Take step `number`: the updates g_t of the selected parameters, one after another, as they travel.

        The last step, sent again with the same gradients, gives the same updates again and changes nothing.

        Raises:
            StepConflict: `number` is not next.
            GradientsInvalid: a gradient is not finite; nothing has changed.
            ParametersNeeded: the optimizer needs θ first; nothing has changed.
        """
        if number != self.next_step:
            return self._repeated(number, gradients)
        self._require_theta()
        selection = gradients.selection
        sent = collect(self._computed(gradients).numpy(), selection, self.dtype)
        if self.theta is not None:
            self.theta += torch.from_numpy(spread(widen(sent, self.dtype), selection)).view_as(self.theta)
        self._tick(selection.skipped)
        self._last = (gradients, sent)
        self.next_step += 1
        self.prolong()
        return sent

    def _computed(self, gradients: StepGradients) -> Updates:
        """g_t, `[pages, 256]`; h_t is h_{t+1} afterwards."""
        phi, selection = self.version.phi, gradients.selection
        observations = Observations(
            torch.from_numpy(gradients.pages()),
            self._clock(),
            self.theta,
            loss=None if gradients.loss is None else torch.tensor(gradients.loss),
            horizon=None if self.horizon is None else torch.tensor(float(self.horizon)),
        )
        if self.optimizer.coordinatewise:
            active = selection.active()
            return step_in_shares(self.optimizer, phi, self.arena.pages, self.pages, observations, active)
        updates, self.arrays = step_whole(
            self.array_layout, phi, self.arena, self.pages, self.arrays, observations, selection
        )
        return updates

    def _repeated(self, number: int, gradients: StepGradients) -> NDArray[Any]:
        if self._last is not None and number == self.next_step - 1:
            before, updates = self._last
            if gradients.same_as(before):
                self.prolong()
                return updates
        raise StepConflict(number, self.next_step)

    def _require_theta(self) -> None:
        if self.theta is None and "parameters" in self.optimizer.needs:
            raise ParametersNeeded(
                f"{self.version.name!r} with these hyperparameters needs the parameters' values θ: "
                f"send them once with PUT /v1/sessions/{self.id}/parameters; the server follows them from then on."
            )

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

    def put_parameters(self, bits: NDArray[Any]) -> None:
        """Take θ, every parameter one after another as they travel; the steps to come follow it.

        Raises:
            ParametersInvalid: a number is not finite.
            StateTooLarge: there is no room for θ.
        """
        values = spread(widen(bits, self.dtype), self.layout.complete)
        require_finite(values, self.layout, ParametersInvalid, "parameter")
        self.hold_theta(torch.from_numpy(values).view(-1, PAGE))

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

    def update(
        self, changes: dict[str, Any] | None = None, label: str | None = None, ttl_seconds: float | None = None
    ) -> None:
        """Change what may change between two steps; all of it, or nothing if something cannot be used.

        Raises:
            HyperparametersInvalid: an unknown one, a wrong value, or one that would change what h_t is made of.
            RequestInvalid: a bad label or `ttl_seconds`.
        """
        optimizer = configured(self.optimizer, changes or {})
        if optimizer.features != self.optimizer.features:
            raise HyperparametersInvalid(
                f"{', '.join(sorted(changes or {}))} would change what the hidden state is made of, from "
                f"{_listed(self.optimizer.features)} to {_listed(optimizer.features)}; create a new session for that."
            )
        if label is not None:
            require_label(label)
        if ttl_seconds is not None:
            require_ttl(ttl_seconds)
            self.prolong(ttl_seconds)
        self.optimizer = optimizer
        self.label = self.label if label is None else label

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of a hand-designed optimizer, all of them; empty for a learned one."""
        return hyperparameters(self.optimizer)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, name: str) -> Checkpoint:
        """Keep h_t, the clocks and θ under `name`; what had that name before is gone.

        Raises:
            RequestInvalid: `name` is no name.
            StateTooLarge: there is no room for another copy.
        """
        return self.checkpoints.save(name, self.next_step, self.pages, self.arrays, self.clocks, self.theta)

    def restore(self, name: str) -> None:
        """Go back to a checkpoint; `next_step` goes back too.

        Raises:
            CheckpointNotFound: there is none of that name.
            StateTooLarge: there is no room for the checkpoint's θ.
        """
        saved = self.checkpoints.get(name)
        self.hold_theta(None if saved.theta is None else saved.theta.clone())
        self.arena.copy(saved.pages, self.pages)
        self.go_on_from(saved.step, saved.clocks.copy(), saved.arrays)

    def go_on_from(self, next_step: int, clocks: NDArray[np.int64], arrays: Arrays) -> None:
        """Let `next_step` come next, from these arrays and the hidden state that was just put into the pages."""
        self.next_step = next_step
        self.clocks = clocks
        self.arrays = arrays
        self._last = None
        self.prolong()

    # --- life ---------------------------------------------------------------------------------------------------------

    def prolong(self, ttl_seconds: float | None = None) -> None:
        """Let the session expire `ttl_seconds` from now, or as long from now as it has always lived."""
        if ttl_seconds is not None:
            self.ttl_seconds = ttl_seconds
        self.deadline = time.monotonic() + self.ttl_seconds
        self.expires_at = datetime.now(UTC) + timedelta(seconds=self.ttl_seconds)

    def close(self) -> None:
        """Give all memory back; the session is of no use any more."""
        if self.closed:
            return
        self.closed = True
        self.hold_theta(None)
        self.checkpoints.clear()
        self.arena.free(self.pages)
        self._memory.release(self._own_bytes)
        self.arrays = {}
        self._last = None


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as JSON carries it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _listed(features: tuple[str, ...]) -> str:
    return ", ".join(features) or "nothing"
