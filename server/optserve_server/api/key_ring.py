"""The API keys in memory, so that no request waits for the database to learn whose it is."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from optserve.wire import problems
from optserve.wire.api_keys import ADMIN, ANONYMOUS
from optserve_server.api.problems import Problem
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.registry.models import ApiKey

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 0.75
"""How old the keys in memory get. With the reading itself, a key revoked elsewhere is refused within a second."""

WRITE_SECONDS = 10.0
"""How far the times of last use in the database are behind: all uses of a key until then are one write."""

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

    @classmethod
    def of(cls, name: str, scope: str) -> "Caller":
        """The holder of a key of this name and scope."""
        return cls(name, scope, frozenset({name, ANONYMOUS} if scope == ADMIN else {name}))


ANYBODY = Caller.of(ANONYMOUS, ADMIN)
"""Whoever calls a server without keys may do everything."""


@dataclass(frozen=True, slots=True)
class _Held:
    """One key as it was last read."""

    key_id: int
    caller: Caller
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyRing:
    """All keys as they were in the database a moment ago, and when each was last used.

    `may_be_open`: whether everybody may call as long as there is no unrevoked key; otherwise nobody may.
    """

    def __init__(self, database: Database, *, may_be_open: bool) -> None:
        self._database = database
        self._may_be_open = may_be_open
        self._held: Mapping[str, _Held] = {}
        self._open = False
        self._reading = threading.Lock()
        self._uses: dict[int, datetime] = {}
        self._written = datetime.min.replace(tzinfo=UTC)
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the keys, and go on reading them.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
        """
        await asyncio.to_thread(self.refresh)
        # Apart, for a write may have to wait for another one, and reading never does.
        for seconds, work in ((REFRESH_SECONDS, self.refresh), (WRITE_SECONDS, self.write_uses)):
            self._tasks.append(asyncio.create_task(self._every(seconds, work)))

    async def close(self) -> None:
        """Stop reading, and write down what was not written yet."""
        self._closing.set()
        await asyncio.gather(*self._tasks)
        await self._attempt(self.write_uses)

    def refresh(self) -> None:
        """Read the keys now: what was committed before this call counts from its end on."""
        with self._reading, self._database.session() as db_session:
            rows = api_keys.list_keys(db_session)
            self._held = {row.sha256: _held(row) for row in rows}
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
            return ANYBODY
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

    async def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not await self._closes_within(seconds):
            await self._attempt(work)

    async def _attempt(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except SQLAlchemyError as error:
            # The keys last read stay in force, so that training goes on while the database is away.
            reason = str(error).partition("\n")[0]
            log.warning("the API keys in memory are not those of the database", reason=reason)

    async def _closes_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True


def _held(row: ApiKey) -> _Held:
    return _Held(row.id, Caller.of(row.name, row.scope), row.expires_at, row.revoked_at)
