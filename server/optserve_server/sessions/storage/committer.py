"""Group commit: records of many sessions, written and synced together beside the event loop.

What one round of the event loop brings is a group: threads and loop take turns at the interpreter's lock for each
group, not for each record. While one group is synced the next gathers; nobody waits for a timer. Large records have
threads of their own, so that small ones do not wait behind them.
"""

import asyncio
import errno
import os
import queue
import threading
from collections.abc import Callable

from optserve_server import metrics
from optserve_server.sessions.storage.journal import Journal
from optserve_server.sessions.storage.records import Record
from optserve_server.sessions.storage.writing import SHORT, Append, append_all

_LARGE_BYTES = 64 << 10
_SMALL_THREADS = 4  # file systems commit together what is synced at the same time
_LARGE_THREADS = 2

Commit = tuple[Journal, Record, "asyncio.Future[None]"]
Groups = queue.SimpleQueue[list[Commit] | None]


class Committer:
    """Appends records to journals. Called on the event loop; one record of a journal at a time."""

    def __init__(self, *, sync: bool) -> None:
        """`sync`: a record is synced before its future is done; without, it is only written."""
        append_all([], sync=sync)  # compiled now, not at somebody's first step
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._gathering: list[Commit] = []
        self._small: Groups = queue.SimpleQueue()
        self._large: Groups = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(commit, groups), name=name, daemon=True)
            for name, commit, groups, count in self._lanes()
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def append(self, journal: Journal, record: Record) -> "asyncio.Future[None]":
        """Append a record; the future is done when it is safe, and fails with OSError if nothing of it is left."""
        done = self._loop.create_future()
        commit = journal, record, done
        if record.body.size > _LARGE_BYTES or journal.generation.alignment > 1:
            self._large.put([commit])
        else:
            if not self._gathering:
                self._loop.call_soon(self._hand_over)
            self._gathering.append(commit)
        return done

    def close(self) -> None:
        """Finish what was given, and stop."""
        self._hand_over()
        for _, _, groups, count in self._lanes():
            for _ in range(count):
                groups.put(None)
        for thread in self._threads:
            thread.join()

    def _lanes(self) -> "list[tuple[str, Callable[[list[Commit]], list[OSError | None]], Groups, int]]":
        return [
            ("commit", self._commit, self._small, _SMALL_THREADS),
            ("commit-large", self._commit_large, self._large, _LARGE_THREADS),
        ]

    def _hand_over(self) -> None:
        if self._gathering:
            self._small.put(self._gathering)
            self._gathering = []

    def _work(self, commit: "Callable[[list[Commit]], list[OSError | None]]", groups: Groups) -> None:
        while (group := groups.get()) is not None:
            self._loop.call_soon_threadsafe(_resolve, group, commit(group))

    def _commit_large(self, group: list[Commit]) -> list[OSError | None]:
        ((journal, record, _),) = group
        try:
            journal.append(record, sync=self._sync)
        except OSError as error:
            return [error]
        return [None]

    def _commit(self, group: list[Commit]) -> list[OSError | None]:
        metrics.JOURNAL_BATCH.observe(len(group))
        appends = [journal.ordered(record) for journal, record, _ in group]
        outcomes = append_all(appends, sync=self._sync)
        return [_complete(*each) for each in zip((journal for journal, _, _ in group), appends, outcomes, strict=True)]


def _complete(journal: Journal, append: Append, outcome: int) -> OSError | None:
    if not outcome:
        journal.accept(len(append.octets))
        return None
    # What writes less than it should have has no room for the rest.
    number = errno.ENOSPC if outcome == SHORT else outcome
    try:
        journal.cut()
    except OSError as second:
        # What was not written whole is cut off when the journal is read again; what was counts, as after a crash.
        return second
    return OSError(number, os.strerror(number), str(journal.path))


def _resolve(group: list[Commit], outcomes: list[OSError | None]) -> None:
    for (_, _, done), outcome in zip(group, outcomes, strict=True):
        if done.cancelled():
            continue
        if outcome is None:
            done.set_result(None)
        else:
            done.set_exception(outcome)
