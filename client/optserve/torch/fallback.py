"""A session on a server, and one in this process that goes on while the server is away.

The hidden state is the server's. Of it this process has a copy, fetched now and then, and the steps since: from these
the session here is made when the server is away. It has the same bits, so it does not matter whether the server took
the step at which it went away. When the server is back its session is given the state of the one here, whatever it had.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from optserve.client import Client
from optserve.errors import ConnectionFailed, OptserveError, ProblemError, SessionExpired, SessionNotFound
from optserve.layout import Float32
from optserve.session import Session
from optserve.torch.group import Steps
from optserve.wire.guard import GuardNote

log = logging.getLogger("optserve")

T = TypeVar("T")
Hyperparameters = Mapping[str, Any]

LEAST_STEPS = 16
"""So many steps are kept at least before the hidden state is fetched anew: less would be felt on the wire."""
LEAST_BYTES = 1 << 20
"""So many bytes of gradients likewise: with less it is the round trip that would be felt."""
STATES_OF_STEPS = 2
"""And so many times the bytes of the hidden state: fetching it adds a quarter at most to what travels."""
ASK_EVERY = 1.0
"""Seconds after which a server that is away is asked again, if asking takes next to nothing."""

_PATIENCE = 2.0  # seconds to wait for that answer
_SHARE = 10  # so many times as long as asking took it is not asked again
_GONE_STATUS = (502, 503, 504)
_NOBODY = "0" * 32  # the id of no session


class Server:
    """Whether an optimizer's server is away; its sessions share it, so that one of them waits and tells of it.

    Attributes:
        is_away: whether it was when it was last needed.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._begin()

    def _begin(self) -> None:
        self.is_away = False
        self._refusal = ""
        self._ask_at = 0.0
        self._asking: Client | None = None

    def answers(self) -> bool:
        """Whether it is there, as far as is known; asked only now and then while it is away."""
        if not self.is_away:
            return True
        begun = time.monotonic()
        if begun < self._ask_at:
            return False
        self._asking = self._asking or self._client.trying_once(_PATIENCE)
        is_there = True
        try:
            self._asking.sessions.get(_NOBODY)
        except OptserveError as error:
            is_there = not means_away(error)
        self._wait(time.monotonic() - begun)
        return is_there

    def went_away(self, error: OptserveError) -> None:
        """Take note, and tell the user the first time."""
        if not self.is_away:
            log.warning("the server is away (%s); steps are taken in this process until it is back", error)
        self.is_away = True
        self._wait(0.0)

    def refused(self, error: OptserveError) -> None:
        """It is there, but does not take the hidden state back: tell the user why, and go on as if it were away."""
        if str(error) != self._refusal:
            log.warning("the server does not take the hidden state back (%s); steps go on in this process", error)
        self._refusal = str(error)
        self.is_away = True
        self._wait(0.0)

    def came_back(self, session: Steps) -> None:
        """A session has its hidden state again: tell the user the first time."""
        if self.is_away:
            log.warning("the server is back: session %s takes step %d and the next", session.id, session.next_step)
        self.is_away, self._refusal = False, ""

    def _wait(self, took: float) -> None:
        self._ask_at = time.monotonic() + max(ASK_EVERY, _SHARE * took)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin with a server that is there."""
        return {"_client": self._client}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


class FallbackSession:
    """One training loop's session; what it has in common with `optserve.Session` is named alike.

    Args:
        server: whether it is away.
        on_server: opens a session at h_0 = 0 there, with hyperparameters.
        here: opens one in this process.
        hyperparameters: those that it begins with.
    """

    def __init__(
        self,
        server: Server,
        on_server: Callable[[Hyperparameters], Session],
        here: Callable[[Hyperparameters], Steps],
        hyperparameters: Hyperparameters,
    ) -> None:
        self._server, self._on_server, self._here = server, on_server, here
        self._remote: Session | None = None
        self._local: Steps | None = None  # while the server is away
        self._hyperparameters = dict(hyperparameters)
        self._last: Float32 | None = None  # the updates of the last step that the server took
        self._keep(None)
        self._do(lambda session: None)

    # --- a session's surface ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """What messages call it."""
        return self._present.id

    @property
    def next_step(self) -> int:
        """The number of the step that comes next."""
        return self._present.next_step

    @property
    def guard_notes(self) -> list[GuardNote]:
        """What the update guard did at the last step."""
        return self._present.guard_notes

    def step_flat(self, gradients: Float32, loss: float | None, skip: Collection[str]) -> Float32:
        """The updates g_t for ∇_t, each [n]; as `Session.step_flat`."""
        if self._local is None and len(self._since) >= self._most(gradients.nbytes):
            self.state()  # before the step: what goes wrong with it leaves the step to be taken
        updates = self._do(partial(_step, gradients, loss, skip))
        if self._local is None:
            self._since.append(partial(_step, gradients.copy(), loss, skip))
            self._last = updates
        return updates

    def update(self, *, hyperparameters: Hyperparameters) -> None:
        """Change hyperparameters between two steps."""
        change = partial(_change, dict(hyperparameters))
        self._do(change)
        if self._local is None:
            self._since.append(change)
        self._hyperparameters.update(hyperparameters)

    def refresh(self) -> None:
        """Let `next_step`, and the copy of the hidden state, be what the server's session has."""
        self._do(lambda session: session.refresh())
        self.state()

    def state(self) -> bytes:
        """The whole of h_t as the bytes of a safetensors file."""
        file = self._do(lambda session: session.state())
        if self._local is None:
            self._keep(file)
        return file

    def load_state(self, file: bytes) -> None:
        """Go on from what `state()` gave."""
        self._do(lambda session: session.load_state(file))
        if self._local is None:
            self._keep(file)

    def close(self) -> None:
        """Give h_t up; a session on a server that is away expires."""
        if self._local is not None:
            self._local.close()
        if self._remote is not None and not self._server.is_away:
            self._remote.close()

    # --- here or there ------------------------------------------------------------------------------------------------

    @property
    def _present(self) -> Steps:
        present = self._local or self._remote
        assert present is not None
        return present

    def _do(self, act: Callable[[Steps], T]) -> T:
        """Let the server's session do it, or, while the server is away, the one here."""
        if self._local is not None and self._server.answers():
            self._hand_back(self._local)
        if self._local is None:
            if self._server.answers():
                try:
                    if self._remote is None:
                        self._remote = self._on_server(self._hyperparameters)
                    return act(self._remote)
                except OptserveError as error:
                    if not means_away(error):
                        raise
                    self._server.went_away(error)
            self._local = self._stand_in()
        return act(self._local)

    def _keep(self, copy: bytes | None) -> None:
        """Have a copy of the present hidden state, None for h_0, and nothing to do since."""
        self._copy, self._since = copy, list[Callable[[Steps], Any]]()
        self._hyperparameters_then = dict(self._hyperparameters)
        self._last = None

    def _most(self, gradient_bytes: int) -> int:
        """So many steps are kept until the hidden state is fetched anew."""
        least = max(LEAST_BYTES, STATES_OF_STEPS * len(self._copy or b""))
        return max(LEAST_STEPS, least // max(1, gradient_bytes))

    def _stand_in(self) -> Steps:
        """A session here with the hidden state that the server's has, or had before a step that it did not answer."""
        local = self._here(self._hyperparameters_then)
        if self._copy is not None:
            local.load_state(self._copy)
        updates: Any = None
        for act in self._since:
            done = act(local)
            updates = updates if done is None else done
        if self._last is not None and not np.array_equal(updates, self._last):
            log.warning("this process rounds otherwise than the server: its hidden state is equal to rounding only")
        return local

    def _hand_back(self, local: Steps) -> None:
        """Give the server's session, a new one if it is gone, the hidden state of the one here."""
        copy = local.state()
        try:
            remote = self._remote = self._reopened()
            remote.load_state(copy)
        except OptserveError as error:
            (self._server.went_away if means_away(error) else self._server.refused)(error)
            return
        self._server.came_back(remote)
        local.close()
        self._local = None
        self._keep(copy)

    def _reopened(self) -> Session:
        if self._remote is not None:
            try:
                self._remote.refresh()
            except (SessionNotFound, SessionExpired):
                self._remote = None
        if self._remote is None:
            return self._on_server(self._hyperparameters)
        if self._hyperparameters:
            self._remote.update(hyperparameters=self._hyperparameters)
        return self._remote


def means_away(error: OptserveError) -> bool:
    """Whether it says that there is no server now, or one that takes nothing."""
    return isinstance(error, ConnectionFailed) or (isinstance(error, ProblemError) and error.status in _GONE_STATUS)


def _step(gradients: Float32, loss: float | None, skip: Collection[str], session: Steps) -> Float32:
    return session.step_flat(gradients, loss, skip)


def _change(hyperparameters: Hyperparameters, session: Steps) -> None:
    session.update(hyperparameters=hyperparameters)
