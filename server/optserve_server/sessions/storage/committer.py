"""Group commit: records of many sessions, written and synced together beside the event loop.

While one group is synced the next gathers; nobody waits for a timer. Large records have threads of their own, so that
small ones do not wait behind them.
"""

import asyncio
import queue
import threading

from optserve_server import metrics
from optserve_server.sessions.storage.journal import Journal
from optserve_server.sessions.storage.records import Record

_LARGE_BYTES = 64 << 10
_SMALL_THREADS = 4  # file systems commit together what is synced at the same time
_LARGE_THREADS = 2
_MOST_IN_A_GROUP = 32

Commit = tuple[Journal, Record, "asyncio.Future[None]"]


class Committer:
    """Appends records to journals. Called on the event loop; one record of a journal at a time."""

    def __init__(self, *, sync: bool) -> None:
        """`sync`: a record is synced before its future is done; without, it is only written."""
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._small: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._large: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(commits,), name=name, daemon=True)
            for name, commits, count in self._lanes()
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def append(self, journal: Journal, record: Record) -> "asyncio.Future[None]":
        """Append a record; the future is done when it is safe, and fails with OSError if nothing of it is left."""
        done = self._loop.create_future()
        commits = self._large if record.body.size > _LARGE_BYTES else self._small
        commits.put((journal, record, done))
        return done

    def close(self) -> None:
        """Finish what was given, and stop."""
        for _, commits, count in self._lanes():
            for _ in range(count):
                commits.put(None)
        for thread in self._threads:
            thread.join()

    def _lanes(self) -> "list[tuple[str, queue.SimpleQueue[Commit | None], int]]":
        return [("commit", self._small, _SMALL_THREADS), ("commit-large", self._large, _LARGE_THREADS)]

    def _work(self, commits: "queue.SimpleQueue[Commit | None]") -> None:
        while (first := commits.get()) is not None:
            group, last = _gather(first, commits)
            outcomes = self._commit(group)
            self._loop.call_soon_threadsafe(_resolve, group, outcomes)
            if last:
                return

    def _commit(self, group: list[Commit]) -> list[OSError | None]:
        metrics.JOURNAL_BATCH.observe(len(group))
        written: list[int | OSError] = []
        for journal, record, _ in group:
            try:
                written.append(journal.write(record))
            except OSError as error:
                written.append(error)
        return [self._complete(journal, size) for (journal, _, _), size in zip(group, written, strict=True)]

    def _complete(self, journal: Journal, written: int | OSError) -> OSError | None:
        try:
            if isinstance(written, OSError):
                raise written
            if self._sync:
                journal.sync()
        except OSError as error:
            return _take_back(journal, error)
        journal.accept(written)
        return None


def _take_back(journal: Journal, error: OSError) -> OSError:
    try:
        journal.cut()
    except OSError as second:
        # What was not written whole is cut off when the journal is read again; what was counts, as after a crash.
        return second
    return error


def _gather(first: Commit, commits: "queue.SimpleQueue[Commit | None]") -> tuple[list[Commit], bool]:
    """What waits behind the first, and whether that is the end."""
    group = [first]
    while len(group) < _MOST_IN_A_GROUP:
        try:
            commit = commits.get_nowait()
        except queue.Empty:
            break
        if commit is None:
            return group, True
        group.append(commit)
    return group, False


def _resolve(group: list[Commit], outcomes: list[OSError | None]) -> None:
    for (_, _, done), outcome in zip(group, outcomes, strict=True):
        if done.cancelled():
            continue
        if outcome is None:
            done.set_result(None)
        else:
            done.set_exception(outcome)
