"""`client.sessions`: create, find and list sessions.

session = client.sessions.create("lstm", {"w": (64, 20), "b": (20,)})
"""

from collections.abc import Mapping
from typing import Any, Generic

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.layout import declare
from optserve.resource import Resource, segment, to_json
from optserve.session import AnySession, AsyncSession, Session
from optserve.wire.bodies import SessionInfo, SessionRequest


class SharedSessions(Resource, Generic[AnySession]):
    """The operations of `client.sessions`."""

    _session_class: type[AnySession]

    def _session(self, info: SessionInfo) -> AnySession:
        return self._session_class(self._connection, info)

    @exchange
    def create(
        self,
        optimizer: str | None,
        parameters: Mapping[str, Any],
        *,
        dtype: str = "float32",
        hyperparameters: Mapping[str, Any] | None = None,
        horizon: int | None = None,
        label: str = "",
        ttl_seconds: float = 86400,
        guard: Mapping[str, Any] | bool | None = None,
    ) -> Exchange[AnySession]:
        """Create a session.

        Args:
            optimizer: NAME, NAME@7 or NAME@ALIAS; None for the server's default optimizer.
            parameters: the shape of each parameter, or an array of that shape, by name.
            dtype: `float32`, `float16` or `bfloat16`: of gradients and updates on the wire.
            hyperparameters: of a hand-designed optimizer, with PyTorch's names and defaults.
            horizon: how many steps the loop plans, where it knows.
            label: for people, in lists and on the dashboard.
            ttl_seconds: the session expires this long after its last step.
            guard: the update guard: `max_update_rms`, `patience` and `fallback`, those that are not to have their
                defaults; True for the defaults, False for none. None: a learned optimizer has one.

        Raises:
            OptimizerNotFound: no optimizer of that name.
            RequestInvalid: an option of the guard that is none, or out of its range.
            HyperparametersInvalid: an unknown name or a value out of its range.
            StateTooLarge: the server has no room for the hidden state.
        """
        table = dict(guard) if isinstance(guard, Mapping) else guard
        request = SessionRequest(
            declare(parameters), optimizer, dtype, dict(hyperparameters or {}), horizon, label, ttl_seconds, guard=table
        )
        return self._session((yield from self._create(SessionInfo, "/sessions", to_json(request))))

    @exchange
    def get(self, id: str) -> Exchange[AnySession]:
        """The session of that id, to go on with it from another process.

        Raises:
            SessionNotFound: there is none, or it is another key's.
        """
        return self._session((yield from self._get(SessionInfo, f"/sessions/{segment(id)}")))

    @exchange
    def list(self) -> Exchange[list[AnySession]]:
        """Every session of this API key."""
        infos = yield from self._list(SessionInfo, "/sessions")
        return [self._session(info) for info in infos]


class Sessions(Blocking, SharedSessions[Session]):
    """`client.sessions`."""

    _session_class = Session


class AsyncSessions(Awaited, SharedSessions[AsyncSession]):
    """`client.sessions` of an `AsyncClient`."""

    _session_class = AsyncSession
