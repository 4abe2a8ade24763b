"""Looks at the database now and then, for those who ask how the server is; they never wait for it for long."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

import structlog

from optserve_server import metrics
from optserve_server.registry import leases
from optserve_server.registry.database import UNREACHABLE, Database, DatabaseUnusable, reason
from optserve_server.registry.leases import Leased
from optserve_server.registry.models import Evaluation, MetaTrainingRun

log = structlog.get_logger(__name__)

MAX_AGE_SECONDS = 2.0
WAIT_SECONDS = 2.0

_WORK: Mapping[str, type[Leased]] = {"meta-training-run": MetaTrainingRun, "evaluation": Evaluation}


@dataclass(frozen=True)
class Sight:
    """The database as it was when somebody looked; `away` says why it cannot be used, where it cannot."""

    revision: str | None = None
    work: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How many runs and evaluations there are, by kind and status."""
    away: str | None = None


class DatabaseWatch:
    """One look at a time, however many ask, and none within `MAX_AGE_SECONDS` of the last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looking: asyncio.Task[Sight] | None = None
        self._seen, self._seen_at = Sight(), -MAX_AGE_SECONDS

    async def look(self) -> Sight:
        """What there is to see; after `WAIT_SECONDS` without an answer, that there is none."""
        if monotonic() - self._seen_at < MAX_AGE_SECONDS:
            return self._seen
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(self._look))
        await asyncio.wait({self._looking}, timeout=WAIT_SECONDS)
        if not self._looking.done():
            return Sight(away=f"it has not answered within {WAIT_SECONDS:g} s")
        seen = self._looking.result()
        if seen.away != self._seen.away:
            log.warning("the database is " + ("there again" if seen.away is None else "away"), reason=seen.away)
        self._seen, self._seen_at = seen, monotonic()
        return seen

    async def update_metrics(self) -> None:
        """Look, and tell the metrics: nothing of runs that cannot be counted now."""
        seen = await self.look()
        metrics.DATABASE_UP.set(seen.away is None)
        metrics.WORK.clear()
        for (kind, status), count in seen.work.items():
            metrics.WORK.labels(kind, status).set(count)

    def _look(self) -> Sight:
        try:
            revision = self._database.current()
            if revision is None:
                return Sight(away="the file is gone, or is no longer that of optserve")
            with self._database.session() as db_session:
                counts = {kind: leases.count_by_status(db_session, table) for kind, table in _WORK.items()}
        except (DatabaseUnusable, *UNREACHABLE) as error:
            return Sight(away=reason(error))
        return Sight(
            revision, {(kind, status): count for kind, found in counts.items() for status, count in found.items()}
        )
