"""Group commit: what is acknowledged can be read, in order; what cannot be written is said and leaves nothing."""

import asyncio
import errno
from pathlib import Path

import pytest
from tests.sessions.storage.conftest import contents, generation, record, told
from tests.sessions.storage.test_journal import files_at_most

from optserve_server.sessions.storage.committer import Committer
from optserve_server.sessions.storage.journal import Journal


@pytest.mark.parametrize("sync", [True, False])
def test_records_of_many_sessions_are_there_when_they_are_acknowledged(tmp_path: Path, sync: bool) -> None:
    journals = [Journal.begin(tmp_path / str(number), generation()) for number in range(40)]

    async def follow(committer: Committer, journal: Journal, numbers: int) -> None:
        for step in range(5):
            await committer.append(journal, record(step, numbers))
            assert [one[1] for one in contents(journal.path)] == list(range(step + 1))

    async def run() -> None:
        committer = Committer(sync=sync)
        # Every tenth is large, and goes another way.
        await asyncio.gather(
            *(follow(committer, one, 5 if number % 10 else 50_000) for number, one in enumerate(journals))
        )
        committer.close()

    asyncio.run(run())


def test_a_record_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    small, large = (Journal.begin(tmp_path / name, generation()) for name in ("small", "large"))

    async def run() -> None:
        committer = Committer(sync=True)
        with files_at_most(10_000):
            outcomes = await asyncio.gather(
                committer.append(small, record(0)), committer.append(large, record(0, 10_000)), return_exceptions=True
            )
        assert outcomes[0] is None
        assert isinstance(outcomes[1], OSError)
        assert outcomes[1].errno in (errno.EFBIG, errno.ENOSPC)
        await committer.append(large, record(0, 10_000))
        committer.close()

    asyncio.run(run())
    assert contents(small.path) == [told(record(0))]
    assert contents(large.path) == [told(record(0, 10_000))]


def test_what_was_given_is_written_before_the_end(tmp_path: Path) -> None:
    journals = [Journal.begin(tmp_path / str(number), generation()) for number in range(100)]

    async def run() -> None:
        committer = Committer(sync=True)
        for journal in journals:
            committer.append(journal, record(0))
        await asyncio.to_thread(committer.close)

    asyncio.run(run())
    assert all(contents(journal.path) == [told(record(0))] for journal in journals)
