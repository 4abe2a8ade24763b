"""The API keys in memory, so that no request waits for the database to learn whose it is."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from optserve.wire import problems
from optserve.wire.api_keys import ADMIN, ANONYMOUS
from optserve.wire.limits import Limits
from optserve_server.api.periodic import Periodic
from optserve_server.api.problems import Problem
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.registry.models import ApiKey

REFRESH_SECONDS = 0.75
"""How old the keys in memory get. With the reading itself, a key revoked elsewhere is refused within a second."""

WRITE_SECONDS = 10.0
"""How far the times of last use in the database are behind: all uses of a key until then are one write."""

_AWAY = "the API keys in memory are not those of the database"
"""Those read last stay in force, so that training goes on while the database is away."""

_MEND = (
    "Send `Authorization: Bearer KEY` (the Python client: `api_key`, or OPTSERVE_API_KEY); whoever runs the server "
    "makes keys with `optserve keys create`."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: the holder of a key, or anybody where the server is open."""

    name: str
    """The key's, or `anonymous`."""
    scope: str
    owners: frozenset[str]
    """Whose sessions and runs are there for the caller: its own, and for an admin those of `anonymous` too."""
    limits: Limits

    @classmethod
    def of(cls, name: str, scope: str, limits: Limits) -> "Caller":
        """The holder of a key of this name and scope."""
        return cls(name, scope, frozenset({name, ANONYMOUS} if scope == ADMIN else {name}), limits)


@dataclass(frozen=True, slots=True)
class _Held:
    """One key as it was last read."""

    key_id: int
    caller: Caller
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyRing:
    """All keys as they were in the database a moment ago, and when each was last used.

    `may_be_open`: whether everybody may call as long as there is no unrevoked key; otherwise nobody may. `limits`: of
    whoever has no others.
    """

    def __init__(self, database: Database, limits: Limits, *, may_be_open: bool) -> None:
        self._database = database
        self._limits = limits
        self._anybody = Caller.of(ANONYMOUS, ADMIN, limits)  # who may do everything where there are no keys
        self._may_be_open = may_be_open
        self._held: Mapping[str, _Held] = {}
        self._open = False
        self._reading = threading.Lock()
        self._uses: dict[int, datetime] = {}
        self._written = datetime.min.replace(tzinfo=UTC)
        # Apart, for a write may have to wait for another one, and reading never does.
        self._refreshing = Periodic(REFRESH_SECONDS, partial(asyncio.to_thread, self.refresh), _AWAY)
        self._writing = Periodic(WRITE_SECONDS, partial(asyncio.to_thread, self.write_uses), _AWAY)

    async def start(self) -> None:
        """Read the keys, and go on reading them.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
        """
        await asyncio.to_thread(self.refresh)
        self._refreshing.start()
        self._writing.start()

    async def close(self) -> None:
        """Stop reading, and write down what was not written yet."""
        await self._refreshing.close()
        await self._writing.close(last=True)

    def refresh(self) -> None:
        """Read the keys now: what was committed before this call counts from its end on."""
        with self._reading, self._database.session() as db_session:
            rows = api_keys.list_keys(db_session)
            self._held = {row.sha256: self._hold(row) for row in rows}
            self._open = self._may_be_open and all(row.revoked_at is not None for row in rows)

    def write_uses(self) -> None:
        """Write the times of last use into the database, where they are later than those written last."""
        uses = {key_id: moment for key_id, moment in dict(self._uses).items() if moment > self._written}
        if uses:
            with self._database.session(write=True) as db_session:
                api_keys.write_last_uses(db_session, uses)
            self._written = max(uses.values())

    def caller(self, authorization: str | None) -> Caller:
        """Whose request it is that has this header.

        Raises:
            Problem: a key is needed and there is none, or it is unknown, revoked or expired.
        """
        scheme, _, key = (authorization or "").partition(" ")
        held = self._held.get(api_keys.digest(key.strip())) if scheme.lower() == "bearer" else None
        if held is not None:
            return self._accept(held)
        if self._open:  # what was sent is a key of another server, perhaps; here it makes no difference
            return self._anybody
        if authorization is None:
            raise Problem(problems.UNAUTHORIZED, f"This server asks for an API key. {_MEND}")
        raise Problem(problems.UNAUTHORIZED, f"The `Authorization` sent holds no API key of this server. {_MEND}")

    def _accept(self, held: _Held) -> Caller:
        moment = datetime.now(UTC)
        for what, since in (("was revoked", held.revoked_at), ("expired", held.expires_at)):
            if since is not None and since <= moment:
                when = since.isoformat(timespec="seconds")
                raise Problem(
                    problems.UNAUTHORIZED, f"The API key {held.caller.name!r} {what} at {when}. Use another. {_MEND}"
                )
        self._uses[held.key_id] = moment
        return held.caller

    def limits(self, key: ApiKey) -> Limits:
        """A key's limits: its own, and for the rest the server's."""
        return replace(self._limits, **key.limits or {})

    def _hold(self, key: ApiKey) -> _Held:
        return _Held(key.id, Caller.of(key.name, key.scope, self.limits(key)), key.expires_at, key.revoked_at)
