"""Memory for the sessions that are awake: an arena for each optimizer version."""

import asyncio

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion, configured
from optserve_server.sessions.session import Session


class Waking:
    """Gives sessions their awake parts, and takes them back. Called on the event loop."""

    def __init__(self, memory: StateMemory) -> None:
        self.memory = memory
        self._arenas: dict[tuple[str, tuple[str, ...]], Arena] = {}

    def begin(self, version: ServedVersion, layout: Layout, plan: Plan) -> Awake:
        """The awake part of a new session, at h_0 = 0.

        Raises:
            HyperparametersInvalid: its hyperparameters are none of the optimizer's.
            StateTooLarge: there is no room for its hidden state.
        """
        optimizer = configured(version.optimizer, plan.hyperparameters)
        key = (version.sha256, optimizer.features)
        arena = self._arenas.get(key) or Arena(len(optimizer.features), self.memory)
        awake = Awake(version, optimizer, layout, plan.dtype, plan.horizon, arena, self.memory)
        self._arenas[key] = arena
        return awake

    async def drop(self, session: Session) -> None:
        """Give a session's memory back, in the session's turn."""
        awake, session.awake = session.awake, None
        if awake is None:
            return
        if awake.is_small:
            awake.close()
        else:
            await asyncio.to_thread(awake.close)
        key = (awake.version.sha256, awake.optimizer.features)
        if not awake.arena.used and self._arenas.get(key) is awake.arena:
            del self._arenas[key]
