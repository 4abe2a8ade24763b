"""What is done on the host for a transformation: its sessions are opened, found again and stepped, with NumPy."""

import logging
import math
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optserve.advice import Advice, tell_of_guard
from optserve.client import Client
from optserve.errors import GradientsInvalid, StepConflict
from optserve.layout import Float32, Layout, Shape
from optserve.optax.leaves import difference
from optserve.session import Session

log = logging.getLogger("optserve")

Key: TypeAlias = NDArray[np.uint8]
"""A session's id as an array, [16]: 32 hexadecimal digits."""

KEY_BYTES = 16

_ON_NONFINITE = ("raise", "skip")


class Stepper:
    """Steps the sessions of one transformation's states. Threads may share it.

    A state's step number says which of the session's steps comes next for that state. So an older state is a valid one:
    the session goes back for it, as far as the server retains its steps.

    Args:
        client: of the server.
        optimizer: NAME, NAME@7, NAME@ALIAS or None.
        hyperparameters: of a hand-designed optimizer.
        plan: horizon, label, ttl_seconds and guard, as `client.sessions.create` takes them.
        on_nonfinite: what to do about numbers that are not finite: `raise` or `skip`.

    Attributes:
        needs_parameters: whether each step takes θ along.
    """

    def __init__(
        self,
        client: Client,
        optimizer: str | None,
        hyperparameters: Mapping[str, Any],
        plan: Mapping[str, Any],
        on_nonfinite: str,
    ) -> None:
        if on_nonfinite not in _ON_NONFINITE:
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}, but must be 'raise' or 'skip'")
        self._client = client
        self._plan = plan
        self._skips = on_nonfinite == "skip"
        self._advice = Advice(plan["horizon"], with_loss="update(…, value=loss)")
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        # The server checks everything now, on a session that is closed at once: not under `jit`, where errors are long.
        with client.sessions.create(optimizer, {"tried": (1,)}, hyperparameters=hyperparameters, **plan) as tried:
            self._version = tried.optimizer
            self._hyperparameters = dict(tried.info.hyperparameters)
        self._info = client.optimizers.get(self._version.name)
        decay = self._hyperparameters.get("weight_decay")
        self.needs_parameters = "parameters" in self._info.needs if decay is None else decay != 0

    def open(self, shapes: Mapping[str, Shape]) -> Key:
        """A new session for parameters of these shapes."""
        reference = f"{self._version.name}@{self._version.version}"
        session = self._client.sessions.create(reference, shapes, hyperparameters=self._hyperparameters, **self._plan)
        self._sessions[session.id] = session
        return np.frombuffer(bytes.fromhex(session.id), np.uint8)

    def session(self, key: Key) -> Session:
        """The session of a state.

        Raises:
            SessionNotFound: it was closed, or belongs to another key.
            ValueError: it is another optimizer's.
        """
        id = key.tobytes().hex()
        if id not in self._sessions:
            self._sessions[id] = self._take_up(id)
        return self._sessions[id]

    def step(
        self,
        shapes: dict[str, Shape],
        key: Key,
        step: int,
        gradients: Float32,
        loss: float | None,
        parameters: Float32 | None,
    ) -> tuple[Float32, int]:
        """g_t for ∇_t, each [n], and the step that comes next.

        Args:
            shapes: what the gradients are of.
            key: of the session.
            step: t of the state.
            gradients: ∇_t, [n].
            loss: L(θ_t).
            parameters: θ_t, [n], where the optimizer needs it.

        Raises:
            GradientsInvalid: they are of other parameters than the session, or not finite.
            RequestInvalid: the loss or a parameter is not finite.
            StepConflict: the session is not at that step.
            StepNotRetained: it cannot go back so far.
        """
        if self._skips and not (np.isfinite(gradients).all() and (loss is None or math.isfinite(loss))):
            return np.zeros_like(gradients), step
        with self._lock:
            session = self.session(key)
            _require_same(session, shapes)
            self._go_to(session, step)
            self._advice.of_step(self._info, step, loss)
            try:
                if parameters is not None:
                    session.set_parameters(Layout(shapes, session.info.dtype).split(parameters, ()))
                updates = session.step_flat(gradients, loss)
            except BaseException:
                del self._sessions[session.id]  # whether the step was taken is seen when it is found again
                raise
            tell_of_guard(session.id, step, session.guard_notes)
            return updates, step + 1

    def _take_up(self, id: str) -> Session:
        """A session that a state from elsewhere tells of. It has this transformation's hyperparameters from now on."""
        session = self._client.sessions.get(id)
        if session.optimizer.name != self._version.name:
            raise ValueError(
                f"the state is of a session of {session.optimizer.name!r}, and this is a remote_optimizer of "
                f"{self._version.name!r}; give it remote_optimizer({session.optimizer.name!r})"
            )
        if session.info.hyperparameters != self._hyperparameters:
            session.update(hyperparameters=self._hyperparameters)
        return session

    def _go_to(self, session: Session, step: int) -> None:
        if step > session.next_step:
            raise StepConflict(
                f"the state is at step {step}, but its session {session.id} at step {session.next_step}: it was "
                "rewound or restored behind the state's back; go on from the state that belongs there",
                next_step=session.next_step,
            )
        if step < session.next_step:
            self._advice.give(
                "a state is older than its session, which goes back for it; where that happens at every step, as under "
                "optax.MultiSteps, a step takes a few times as long: average the gradients before update"
            )
            log.info("session %s goes back from step %d to the state's, %d", session.id, session.next_step, step)
            session.rewind(step)


def _require_same(session: Session, shapes: dict[str, Shape]) -> None:
    found = difference(session.parameters, shapes)
    if found:
        raise GradientsInvalid(
            f"the gradients are not of the parameters that the state was made for: {found}; "
            "call init with the parameters that you train"
        )
