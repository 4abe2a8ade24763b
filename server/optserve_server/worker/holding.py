"""A piece of work while a worker holds it: a thread renews its lease, and every write is made under that."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog
from sqlalchemy.orm import Session

from optserve_server.registry import leases
from optserve_server.registry.database import UNREACHABLE, Database, reason
from optserve_server.registry.leases import LEASE_SECONDS, Lease, Leased, LeaseLost

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 1.0
T = TypeVar("T")
W = TypeVar("W", bound=Leased)


def nothing(db_session: Session, work: Leased) -> None:
    """The write that changes nothing."""


class Holding(Generic[W]):
    """Holds a lease as long as the block lasts.

    A heartbeat is one transaction: it renews the lease, asks whether somebody wants the work cancelled, and writes what
    has gathered since the last one (`gathered`). Every other write does the same, so that a busy worker writes no more
    often than need be.
    """

    def __init__(self, database: Database, lease: Lease[W], shut_down: threading.Event) -> None:
        self.database = database
        self.gathered: Callable[[Session, W], None] = nothing
        self.cancel_requested = False
        self._lease = lease
        self._shut_down = shut_down
        self._writing = threading.Lock()
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def shutting_down(self) -> bool:
        """Whether the worker is to stop, and to give the work back."""
        return self._shut_down.is_set()

    def require(self) -> None:
        """Check that the work is still this worker's; to be asked between any two steps of it.

        Raises:
            LeaseLost: it is another's, or over.
        """
        if self._failure is not None:
            raise self._failure

    def persist(self, write: Callable[[Session, W], T]) -> T:
        """Write in a transaction, with what has gathered before. While the database is out of reach, wait for it.

        `write` is given the work's row, locked, and may be called more than once.

        Raises:
            LeaseLost: the work is another's or over, or the database was away for longer than the lease.
        """
        while True:
            try:
                return self._write(write)
            except UNREACHABLE as error:
                self._endure(error)
                time.sleep(HEARTBEAT_SECONDS)

    def _write(self, write: Callable[[Session, W], T]) -> T:
        with self._writing, self.database.session(write=True) as db_session:
            work = leases.hold(db_session, self._lease)
            leases.renew(db_session, work)
            self.gathered(db_session, work)
            self.cancel_requested = work.cancel_requested
            result = write(db_session, work)
        self._renewed = time.monotonic()
        return result

    def _endure(self, error: Exception) -> None:
        why = reason(error)
        if time.monotonic() - self._renewed > LEASE_SECONDS:
            raise LeaseLost(f"the database was out of reach for longer than the lease: {why}") from error
        log.warning("the database is out of reach", reason=why)

    def _heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                try:
                    self._write(nothing)
                except UNREACHABLE as error:
                    self._endure(error)
            except Exception as error:  # the thread of the work raises it at its next step
                self._failure = error
                return
