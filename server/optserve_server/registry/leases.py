"""Work that waits in a table, and is held by one worker at a time under a lease.

    queued ──claim──▶ running ──finish──▶ succeeded, failed or cancelled
       ▲                 │                            │
       ├────give_back────┘                            │
       └──────────────────requeue─────────────────────┘

A worker claims a row for `LEASE_SECONDS`, and renews that while it lives. Where a lease has run out, any worker may
claim the row anew. Each holder has an `attempt` of its own, which is the fencing number: a worker takes the row's lock
with `hold` in the transaction that it writes in, and is refused if the row has gone on to another attempt or status.
Whether a lease has run out is a matter of the database's clock alone.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Index,
    Select,
    String,
    Text,
    UniqueConstraint,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
STATUSES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)
OVER = frozenset({SUCCEEDED, FAILED, CANCELLED})

LEASE_SECONDS = 15.0
SILENT_SECONDS = 2.0
"""A worker that has not renewed its lease for so long may be dead: its work is waited for, before other is begun."""
MAX_DEATHS = 25
"""How many workers in a row may die of a piece of work that none of them brings on; then it fails."""

_LEASE, _SILENT = timedelta(seconds=LEASE_SECONDS), timedelta(seconds=SILENT_SECONDS)
_ID_BYTES = 8


class Leased:
    """The columns of a table of leased work."""

    number: Mapped[int] = mapped_column(primary_key=True)
    """The order in which it was asked for, and is begun."""
    id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: secrets.token_hex(_ID_BYTES))
    status: Mapped[str] = mapped_column(String(16), default=QUEUED)
    attempt: Mapped[int] = mapped_column(default=1)
    """1, 2, 3, …: of the worker that holds it, or of the next one."""
    deaths: Mapped[int] = mapped_column(default=0)
    """Leases in a row that ran out before the work was brought on."""
    worker: Mapped[str | None] = mapped_column(Text)
    """Who holds it, or held it last."""
    device: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(Text)
    """Who asked for it."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    """Of the owner's request: the same request again asks for nothing more."""
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Of the request, in hexadecimal."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    """When a worker first took it up."""
    finished_at: Mapped[datetime | None]


def constraints() -> tuple[CheckConstraint | UniqueConstraint | Index, ...]:
    """The state machine, for the `__table_args__` of a table of leased work."""
    over = "status IN ('succeeded', 'failed', 'cancelled')"
    waiting = text("status IN ('queued', 'running')")
    return (
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", "status"),
        CheckConstraint("attempt >= 1 AND deaths >= 0", "attempt"),
        CheckConstraint("(status = 'running') = (lease_expires_at IS NOT NULL)", "lease"),
        CheckConstraint("status <> 'running' OR (worker IS NOT NULL AND started_at IS NOT NULL)", "worker"),
        CheckConstraint("NOT cancel_requested OR status IN ('running', 'cancelled')", "cancel_requested"),
        CheckConstraint(f"({over}) = (finished_at IS NOT NULL)", "finished_at"),
        CheckConstraint("(status = 'failed') = (error IS NOT NULL)", "error"),
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "deaths", "number", sqlite_where=waiting, postgresql_where=waiting),
    )


W = TypeVar("W", bound=Leased)


@dataclass(frozen=True, slots=True)
class Lease(Generic[W]):
    """The right to write to one row, as long as the row is in this attempt."""

    table: type[W]
    number: int
    attempt: int


class LeaseLost(Exception):
    """The work is no longer this worker's: another has it, or it is over. The worker may write nothing more."""


def clock(db_session: Session) -> datetime:
    """The present moment by the database's clock; SQLite has no other than its processes' own."""
    if db_session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = db_session.execute(select(func.clock_timestamp())).scalar_one()
    return moment


def count_by_status(db_session: Session, table: type[Leased]) -> dict[str, int]:
    """How much work of this table is in each status."""
    counts = dict.fromkeys(STATUSES, 0)
    for status, count in db_session.execute(select(table.status, func.count()).group_by(table.status)):
        counts[status] = count
    return counts


# --- of workers -------------------------------------------------------------------------------------------------------


def choose(db_session: Session, tables: Iterable[type[Leased]]) -> type[Leased] | None:
    """The table from which a worker should claim next, if from any. No lock is taken: idle workers disturb nobody.

    Work that a dead worker has left behind goes first. Nothing new is begun while the lease of a worker that has fallen
    silent runs out, for whoever takes a dead worker's place shall go on with its work; but what workers die of is not
    waited for. Else the earlier tables go first.
    """
    moment, tables = clock(db_session), list(tables)
    for table in tables:
        if _exists(db_session, _expired(table, moment), table.deaths == 0):
            return table
    if any(_exists(db_session, _silent(table, moment), table.deaths == 0) for table in tables):
        return None
    return next((table for table in tables if _exists(db_session, _waiting(table, moment))), None)


def claim(db_session: Session, table: type[W], *, worker: str, device: str) -> W | None:
    """Take up the next piece of work: left behind by a worker whose lease has run out, or queued.

    What many workers have died of comes last, and after `MAX_DEATHS` it fails, so that it holds nothing up.
    """
    moment = clock(db_session)
    while (work := db_session.scalar(_claimable(table, moment).with_for_update(skip_locked=True))) is not None:
        if work.status == RUNNING:
            work.attempt += 1
            work.deaths += 1
        if work.deaths >= MAX_DEATHS:
            finish(db_session, work, FAILED, _died(work))
            continue
        work.status = RUNNING
        work.worker, work.device = worker, device
        work.started_at = work.started_at or moment
        work.lease_expires_at = moment + _LEASE
        db_session.flush()
        return work
    return None


def lease_of(work: W) -> Lease[W]:
    """The lease of whoever has just claimed `work`."""
    return Lease(type(work), work.number, work.attempt)


def hold(db_session: Session, lease: Lease[W]) -> W:
    """The row of a lease, locked until the transaction ends.

    Raises:
        LeaseLost: it is no longer this lease's.
    """
    table = lease.table
    query = select(table).where(table.number == lease.number, table.attempt == lease.attempt, table.status == RUNNING)
    work = db_session.scalar(query.with_for_update())
    if work is None:
        raise LeaseLost(f"attempt {lease.attempt} of {table.__name__} {lease.number} has ended")
    return work


def renew(db_session: Session, work: Leased) -> None:
    """Put the end of the lease off to `LEASE_SECONDS` from now."""
    work.lease_expires_at = clock(db_session) + _LEASE
    db_session.flush()


def give_back(db_session: Session, work: Leased) -> None:
    """Let go of work that is not finished: another worker may claim it at once, unless somebody wants it cancelled."""
    if work.cancel_requested:
        finish(db_session, work, CANCELLED)
        return
    work.status, work.lease_expires_at = QUEUED, None
    work.attempt += 1
    db_session.flush()


def give_up(db_session: Session, work: Leased) -> None:
    """Let go of work that one of the worker's processes has died of, as if it had been the worker."""
    work.deaths += 1
    give_back(db_session, work)


def finish(db_session: Session, work: Leased, status: str, error: str | None = None) -> None:
    """End the work; `error` says why it `failed`."""
    moment = clock(db_session)  # asked first, for the question writes down what has changed so far
    work.status, work.error = status, error
    work.lease_expires_at, work.finished_at = None, moment
    work.cancel_requested = work.cancel_requested and status == CANCELLED
    db_session.flush()


# --- of those who ask for work ----------------------------------------------------------------------------------------


def find_by_key(db_session: Session, table: type[W], owner: str, idempotency_key: str) -> W | None:
    """The work that this owner asked for under an idempotency key, if there is any."""
    return db_session.scalar(select(table).where(table.owner == owner, table.idempotency_key == idempotency_key))


def queue(db_session: Session, work: W) -> W:
    """Add work; what its owner asked for under the same key at the same time comes instead."""
    work.created_at = clock(db_session)
    try:
        with db_session.begin_nested():
            db_session.add(work)
    except IntegrityError:
        key = work.idempotency_key
        known = None if key is None else find_by_key(db_session, type(work), work.owner, key)
        if known is None:
            raise
        return known
    return work


def request_cancel(db_session: Session, work: Leased) -> None:
    """End the work at once where nobody holds it; else ask its worker to."""
    if work.status == RUNNING and work.lease_expires_at is not None and work.lease_expires_at > clock(db_session):
        work.cancel_requested = True
        db_session.flush()
    else:
        finish(db_session, work, CANCELLED)


def requeue(db_session: Session, work: Leased) -> None:
    """Let workers go on with work that is over."""
    work.attempt += 1
    work.deaths, work.cancel_requested = 0, False
    work.status, work.error, work.finished_at = QUEUED, None, None
    db_session.flush()


# --- parts ------------------------------------------------------------------------------------------------------------


def _waiting(table: type[Leased], moment: datetime) -> ColumnElement[bool]:
    return (table.status == QUEUED) | _expired(table, moment)


def _expired(table: type[Leased], moment: datetime) -> ColumnElement[bool]:
    return (table.status == RUNNING) & (table.lease_expires_at < moment)


def _silent(table: type[Leased], moment: datetime) -> ColumnElement[bool]:
    return (table.status == RUNNING) & (table.lease_expires_at < moment + _LEASE - _SILENT)


def _exists(db_session: Session, *conditions: ColumnElement[bool]) -> bool:
    return bool(db_session.scalar(select(exists().where(*conditions))))


def _claimable(table: type[W], moment: datetime) -> Select[W]:
    order = (table.deaths, table.status == QUEUED, table.number)
    return select(table).where(_waiting(table, moment)).order_by(*order).limit(1)


def _died(work: Leased) -> str:
    return (
        f"{work.deaths} workers in a row died of it without bringing it on, the last of them {work.worker} on "
        f"{work.device}. They were killed from outside or crashed, most likely for want of memory: the kernel's log "
        "says more. Resume it on a machine that has more."
    )
