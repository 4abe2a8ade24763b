"""Damaged files: what is lost is named, nothing older is served unasked, and there is a way back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.sessions.calls import SNAPSHOT_STEPS, digest, history, save, steps
from tests.sessions.conftest import new_session, opened

from optserve_server.sessions import log, renewing, rewinding, state
from optserve_server.sessions.changing import put_state
from optserve_server.sessions.errors import SessionDamaged
from optserve_server.sessions.session import Session
from optserve_server.sessions.storage.lineage import Lineage, journal_path, snapshot_path
from optserve_server.sessions.store import SessionStore


@pytest.fixture(autouse=True)
def _many_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SNAPSHOT_STEPS", SNAPSHOT_STEPS)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_damaged_is_given_up_by_going_back(tmp_path: Path, restarted: bool) -> None:
    async def test() -> None:
        async with opened(tmp_path, sync=False) as store:
            session = await new_session(store)
            await steps(store, session, 3)
            at_two = await store.turns.run(session, lambda awake: awake.history.items()[:2])
            other = await new_session(store)
            await steps(store, other, 1)
            place = store.directory.place(session.id)
            if not restarted:
                await store.waking.drop(session)
                _damage_the_last_record(place)
                await _mend(store, session, at_two)
        if restarted:
            _damage_the_last_record(place)
            async with opened(tmp_path, sync=False) as store:
                await _mend(store, await store.get(session.id, {session.owner}), at_two)
                await steps(store, await store.get(other.id, {other.owner}), 1)

    asyncio.run(test())


def _damage_the_last_record(place: Path) -> None:
    lineage = Lineage(place)
    for number in lineage.numbers:  # a snapshot would be a way around
        snapshot_path(place, number).unlink(missing_ok=True)
    path = journal_path(place, lineage.numbers[0])
    octets = bytearray(path.read_bytes())
    octets[-20] ^= 1
    path.write_bytes(octets)
    for number in lineage.numbers[1:]:
        journal_path(place, number).unlink()


async def _mend(store: SessionStore, session: Session, history_at_two: list[Any]) -> None:
    for call in (steps(store, session, 1), digest(store, session), store.fork(session, session.owner)):
        with pytest.raises(SessionDamaged, match=r'00000001\.journal.*"step": 2') as refused:
            await call
        assert refused.value.fields == {"step": 2}
    fork = await store.fork(session, session.owner, 1)
    assert fork.next_step == 1
    await rewinding.rewind(store.turns, session, 2)
    assert await history(store, session) == history_at_two
    await store.waking.drop(session)  # and once more from the files, past the damage
    await steps(store, session, 2 * SNAPSHOT_STEPS)
    await rewinding.rewind(store.turns, session, 1)
    assert await digest(store, session) == await digest(store, fork)


def test_a_checkpoint_is_a_way_back_where_nothing_else_can_be_read(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await steps(store, session, 2)
        await save(store, session, "kept")
        kept = await digest(store, session)
        await steps(store, session, 2)
        place = store.directory.place(session.id)
        path = journal_path(place, Lineage(place).newest)
        path.write_bytes(b"?" + path.read_bytes()[1:])
        await store.waking.drop(session)
        for step_or_none in (1, None):
            with pytest.raises(SessionDamaged):
                await store.fork(session, session.owner, step_or_none)
        await rewinding.restore(store.turns, session, "kept")
        assert (session.next_step, await digest(store, session)) == (2, kept)
        await store.waking.drop(session)
        await steps(store, session, 1)

    run(test)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("gone_back", [False, True])
def test_a_newest_journal_without_a_header_is_passed_over_by_who_goes_back(
    tmp_path: Path, restarted: bool, gone_back: bool
) -> None:
    async def test() -> None:
        digests = []
        async with opened(tmp_path, sync=False) as store:
            session = await new_session(store)
            for _ in range(17):
                digests.append(await digest(store, session))
                await steps(store, session, 1)
            await save(store, session, "kept")
            digests.append(await digest(store, session))
            if gone_back:
                await rewinding.rewind(store.turns, session, 12)
            place, lost = store.directory.place(session.id), session.next_step
            if not restarted:
                await renewing.park(store.turns, session)
                _flip(journal_path(place, Lineage(place).newest), 20)
                await go_back(store, session, lost, digests)
        if restarted:
            _flip(journal_path(place, Lineage(place).newest), 20)
            async with opened(tmp_path, sync=False) as store:
                session = await store.get(session.id, {session.owner})
                assert session.next_step == lost
                await go_back(store, session, lost, digests)

    async def go_back(store: SessionStore, session: Session, lost: int, digests: list[str]) -> None:
        place = store.directory.place(session.id)
        with capture_logs() as logs:
            for call in (
                steps(store, session, 1),
                store.fork(session, session.owner),
                rewinding.rewind(store.turns, session, lost + 1),
            ):
                with pytest.raises(SessionDamaged, match=rf'restore {{"step": {lost}}}') as refused:
                    await call
                assert refused.value.fields == {"step": lost}
        told = [(one["session"], one["file"]) for one in logs if one["event"] == "a session is damaged"]
        assert told == [(session.id, f"{Lineage(place).newest:08d}.journal")] * 3
        assert all("header" in one["reason"] for one in logs)
        for at in (lost, lost - 3):
            fork = await store.fork(session, session.owner, at)
            assert (fork.next_step, await digest(store, fork)) == (at, digests[at])
        await rewinding.rewind(store.turns, session, lost - 1)
        assert (session.next_step, await digest(store, session)) == (lost - 1, digests[lost - 1])
        await store.waking.drop(session)  # and once more from the files, past the damage
        assert await digest(store, session) == digests[lost - 1]
        await steps(store, session, 1)
        _flip(journal_path(place, Lineage(place).newest), 20)
        await store.waking.drop(session)
        await rewinding.restore(store.turns, session, "kept")
        assert (session.next_step, await digest(store, session)) == (17, digests[17])

    asyncio.run(test())


def test_where_nothing_can_be_read_a_checkpoint_is_advised(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        place = store.directory.place(session.id)
        await store.waking.drop(session)
        _flip(journal_path(place, 1), 20)
        with pytest.raises(SessionDamaged, match="restore a checkpoint") as refused:
            await steps(store, session, 1)
        assert refused.value.fields == {}

    run(test)


def _flip(path: Path, position: int) -> None:
    octets = bytearray(path.read_bytes())
    octets[position] ^= 1
    path.write_bytes(octets)


def test_a_damaged_snapshot_makes_the_way_longer_and_is_told(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await steps(store, session, 4)
        at_four = await digest(store, session)
        await renewing.park(store.turns, session)
        await steps(store, session, 2)
        now = await digest(store, session)
        await store.waking.drop(session)
        place = store.directory.place(session.id)
        snapshot = snapshot_path(place, Lineage(place).newest)
        _flip(snapshot, -1)
        with capture_logs() as logs:
            assert await digest(store, session) == now
        (told,) = logs
        assert (told["log_level"], told["session"], told["file"]) == ("warning", session.id, snapshot.name)
        await rewinding.rewind(store.turns, session, 4)
        assert await digest(store, session) == at_four
        await renewing.park(store.turns, session)

    run(test)


def test_a_damaged_snapshot_without_journals_before_it_is_refused(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await steps(store, session, 2)
        await put_state(store.turns, session, bytes(await store.turns.run(session, state.encode)))
        await store.waking.drop(session)
        place = store.directory.place(session.id)
        _flip(snapshot_path(place, Lineage(place).newest), -1)
        with pytest.raises(SessionDamaged, match=r"section.*restore a checkpoint"):
            await digest(store, session)

    run(test)


def test_where_only_some_steps_are_lost_no_more_is_advised_to_be_given_up(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await steps(store, session, 4)
        await renewing.park(store.turns, session)
        await store.waking.drop(session)
        _flip(journal_path(store.directory.place(session.id), 1), 4096 + 120 + 100)  # step 1; records have 120 bytes
        for call in (store.fork(session, session.owner, 3), rewinding.rewind(store.turns, session, 3)):
            with pytest.raises(SessionDamaged, match=r"step 1 or an earlier one, or step 4 or a later") as refused:
                await call
            assert "restore" not in str(refused.value)
        for at in (1, 4):
            assert (await store.fork(session, session.owner, at)).next_step == at
        await steps(store, session, 1)

    run(test)
