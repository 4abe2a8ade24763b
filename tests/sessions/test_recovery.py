"""What a session remembers on disk: everything, to the last bit, however it fell asleep."""

import itertools
import shutil
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.sessions.conftest import VERSIONS, new_session, opened
from tests.sessions.storage.test_journal import files_at_most

from optserve_server.sessions import awake as awake_module
from optserve_server.sessions import checkpoints, state
from optserve_server.sessions.changing import put_parameters, put_state, update
from optserve_server.sessions.errors import SessionDamaged, SessionExpired, StepConflict, StorageFull
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.log import SNAPSHOT_STEPS
from optserve_server.sessions.plan import Plan
from optserve_server.sessions.renewing import RETAINED_STEPS, park
from optserve_server.sessions.rewinding import restore
from optserve_server.sessions.stepping import StepRequest, take_step
from optserve_server.sessions.steps import Numbers, StepGradients
from optserve_server.sessions.storage.lineage import Lineage
from optserve_server.sessions.summary import GRACE_SECONDS

PARAMETERS = [("w", (30, 7)), ("b", (7,)), ("s", ())]
COPIES = itertools.count()


@asynccontextmanager
async def crashed(store, session):
    """Another store on what is on disk at this moment, with its session."""
    await store.renewing.close()
    path = store.directory.path.with_name(f"copy-{next(COPIES)}")
    shutil.copytree(store.directory.path, path)
    async with opened(path) as other:
        yield other, await other.get(session.id, {session.owner})


async def take(store, session, number, seed=0, skip=()):
    """A step with gradients that depend on its number and the seed; its reply's bytes."""
    sent = StepGradients(session.layout.select(skip), session.dtype, 1 / (1 + number))
    values = np.random.default_rng([number, seed]).normal(size=sent.bits.size).astype(np.float32)
    sent.bits[:] = values.view(np.uint32) >> 16 if session.dtype == "bfloat16" else values
    asked = StepRequest(number, sent, lambda: None, 0, lambda updates: updates.tobytes())
    return (await take_step(store.turns, session, asked)).body


async def digest(store, session):
    return await store.turns.run(session, state.digest)


@pytest.mark.parametrize("steps", [1, SNAPSHOT_STEPS - 1, 2 * SNAPSHOT_STEPS + 3])
def test_a_session_wakes_as_it_was_and_repeats_its_last_reply(run, steps):
    async def test(store):
        session = await new_session(store, "lstm", PARAMETERS)
        for number in range(steps):
            last = await take(store, session, number)
        before = await digest(store, session)
        async with crashed(store, session) as (other, again):
            assert (again.next_step, again.awake) == (steps, None)
            assert await take(other, again, steps - 1) == last
            assert await digest(other, again) == before
            with pytest.raises(StepConflict):
                await take(other, again, steps - 1, seed=9)
            assert await take(other, again, steps) == await take(store, session, steps)

    run(test)


@pytest.mark.parametrize("kind", ["adam", "hierarchical", "small_fc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_changes_parameters_and_skipped_steps_are_remembered(run, kind, dtype):
    async def test(store):
        session = await new_session(store, kind, PARAMETERS, dtype=dtype, horizon=20)
        numbers = Numbers(session.layout.complete, dtype)
        numbers.bits[:] = 1
        for number in range(6):
            await take(store, session, number, skip=["b"] if number % 2 else [])
        await put_parameters(store.turns, session, numbers, lambda: None, 0)
        changes = {"hyperparameters": {"betas": [0.8, 0.9]}} if kind == "adam" else {}
        await update(store.turns, session, {"label": "later", "ttl_seconds": 7000.0, **changes})
        last = await take(store, session, 6, skip=["w", "b", "s"])
        async with crashed(store, session) as (other, again):
            assert again.settings == session.settings
            assert await take(other, again, 6, skip=["w", "b", "s"]) == last
            assert await take(other, again, 7) == await take(store, session, 7)
            assert await digest(other, again) == await digest(store, session)

    run(test)


def test_theta_that_came_just_before_a_snapshot_that_was_never_written_is_there(run):
    async def test(store):
        session = await new_session(store, "adam", PARAMETERS)
        await take(store, session, 0)
        numbers = Numbers(session.layout.complete, "float32")
        numbers.bits[:] = 1
        await put_parameters(store.turns, session, numbers, lambda: None, 0)
        session.log.go_on(session.awake, session.settings)
        async with crashed(store, session) as (other, again):
            assert await digest(other, again) == await digest(store, session)

    run(test)


def test_large_records_go_past_the_page_cache_and_come_back(run):
    async def test(store):
        session = await new_session(store, "adam", [("w", (100_001,))])
        assert session.log.journal.generation.alignment > 1
        for number in range(3):
            await take(store, session, number)
        async with crashed(store, session) as (other, again):
            assert await take(other, again, 3) == await take(store, session, 3)
            assert await digest(other, again) == await digest(store, session)

    run(test)


def test_a_step_whose_record_is_torn_was_never_taken(run):
    async def test(store):
        session = await new_session(store, "adam", PARAMETERS)
        await take(store, session, 0)
        before = await digest(store, session)
        whole = session.log.journal.path.stat().st_size
        expected = await take(store, session, 1)
        with session.log.journal.path.open("r+b") as file:
            file.truncate(whole + 100)
        async with crashed(store, session) as (other, again):
            assert again.next_step == 1
            assert await digest(other, again) == before
            assert await take(other, again, 1) == expected
            await park(other.turns, again)
            assert await take(other, again, 1) == expected

    run(test)


def test_damage_is_refused_by_name_and_others_are_served(run):
    async def test(store):
        broken, sound = [await new_session(store, "adam", PARAMETERS) for _ in range(2)]
        for number in range(3):
            await take(store, broken, number)
            await take(store, sound, number)
        journal = broken.log.journal.path
        octets = bytearray(journal.read_bytes())
        octets[-1200] ^= 1
        async with crashed(store, sound) as (other, again):
            (other.directory.place(broken.id) / journal.name).write_bytes(octets)
            assert await take(other, again, 3) == await take(store, sound, 3)
            with pytest.raises(SessionDamaged, match=rf"{broken.id}.*{journal.name}"):
                await take(other, await other.get(broken.id, {broken.owner}), 3)
            assert other.awake == 1

    run(test)


@pytest.mark.parametrize("size", [10, 70_000])
def test_a_full_disk_changes_nothing_and_the_session_goes_on_when_there_is_room(run, size):
    async def test(store):
        session = await new_session(store, "adam", [("w", (size,))])
        await take(store, session, 0)
        before = await digest(store, session)
        with files_at_most(session.log.journal.path.stat().st_size + 10):
            for _ in range(2):
                with pytest.raises(StorageFull):
                    await take(store, session, 1)
            with pytest.raises(StorageFull):
                await update(store.turns, session, {"label": "new"})
            assert (session.settings.label, await digest(store, session)) == ("", before)
        expected = await take(store, session, 1)
        async with crashed(store, session) as (other, again):
            assert await take(other, again, 1) == expected

    run(test)


def test_a_session_that_cannot_be_written_is_refused_and_leaves_nothing(run):
    async def test(store):
        with files_at_most(1000), pytest.raises(StorageFull):
            await create_under_key(store)
        assert (len(store), store.memory.used, store.directory.sessions()) == (0, 0, [])
        assert (await create_under_key(store)).next_step == 0

    run(test)


def test_a_step_that_fails_is_taken_back(run, monkeypatch):
    async def test(store):
        session = await new_session(store, "adam", PARAMETERS)
        await take(store, session, 0)
        before = await digest(store, session)
        with monkeypatch.context() as patch:
            patch.setattr(awake_module, "step_in_shares", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await take(store, session, 1)
        assert (session.next_step, await digest(store, session)) == (1, before)
        expected = await take(store, session, 1)
        async with crashed(store, session) as (other, again):
            assert await take(other, again, 1) == expected

    run(test)


def test_old_journals_go_and_what_can_be_gone_back_to_stays(run):
    async def test(store):
        session = await new_session(store, "sgd", PARAMETERS)
        for number in range(6 * SNAPSHOT_STEPS):
            await take(store, session, number)
            await store.renewing.close()
            oldest = Lineage(store.directory.place(session.id)).chain()[-1].first_step
            assert oldest <= max(0, number + 1 - RETAINED_STEPS)
        files = [path.suffix for path in store.directory.place(session.id).iterdir()]
        most = 2 + RETAINED_STEPS // (SNAPSHOT_STEPS // 8)  # where each snapshot is made as soon as one may be
        assert 2 <= files.count(".journal") <= most
        assert files.count(".snapshot") <= most

    run(test)


def test_a_session_that_idles_leaves_memory_and_comes_back(run):
    async def test(store):
        session = await new_session(store, "lstm", PARAMETERS)
        for number in range(3):
            last = await take(store, session, number)
        before = await digest(store, session)
        session.used_at -= 601
        await store.sweep()
        assert (session.awake, store.memory.used, store.awake) == (None, 0, 0)
        assert session.next_step == 3
        assert await digest(store, session) == before
        assert session.log.steps == 0  # it came from a snapshot
        assert await take(store, session, 2) == last

    run(test)


def test_sessions_take_turns_in_memory(run):
    async def test(store):
        sessions = [await new_session(store, "lstm", [("w", (256,))]) for _ in range(40)]
        for number, session in itertools.product(range(2), sessions):
            await take(store, session, number)
        assert 0 < store.awake < 40
        assert len({await digest(store, session) for session in sessions}) == 1

    run(test, memory=300_000)


def test_another_kernel_goes_on_and_says_so_once(run, monkeypatch):
    async def test(store):
        session = await new_session(store, "lstm", PARAMETERS)
        for number in range(3):
            await take(store, session, number)
        monkeypatch.setattr(awake_module, "kernel_identity", lambda kind: "another")
        async with crashed(store, session) as (other, again):
            for number, expected in ((3, True), (4, False)):
                assert (await asked(other, again, number)).is_approximate == expected
            assert again.log.journal.generation.kernel == "another"
            async with crashed(other, again) as (third, once_more):
                assert not (await asked(third, once_more, 5)).is_approximate

    async def asked(store, session, number):
        sent = StepGradients(session.layout.complete, session.dtype)
        sent.bits[:] = 1
        return await take_step(store.turns, session, StepRequest(number, sent, lambda: None, 0, bytes))

    run(test)


def test_updates_that_come_out_otherwise_are_noticed(run, monkeypatch):
    async def test(store):
        session = await new_session(store, "sgd", PARAMETERS)
        for number in range(3):
            await take(store, session, number)
        real = awake_module.step_in_shares
        monkeypatch.setattr(awake_module, "step_in_shares", lambda *arguments: real(*arguments) * 1.0001)
        async with crashed(store, session) as (other, again):
            await digest(other, again)
            assert again.awake.is_approximate

    run(test)


def test_a_state_that_was_put_in_and_a_checkpoint_are_gone_on_from(run):
    async def test(store):
        session, other_one = [await new_session(store, "lstm", PARAMETERS) for _ in range(2)]
        place = store.directory.place(session.id)
        for number in range(4):
            await take(store, session, number)
        before = await digest(store, session)
        data = bytes(await store.turns.run(session, state.encode))
        saved = checkpoints.save(place, session.id, session.awake, "a/../b")
        for number in range(4, 7):
            await take(store, session, number)
        await restore(store.turns, session, "a/../b")
        await put_state(store.turns, other_one, data)
        for one in (session, other_one):
            assert one.next_step == saved.step == 4
            async with crashed(store, one) as (other, again):
                assert again.next_step == 4
                assert await digest(other, again) == before
                assert await take(other, again, 4) == await take(store, one, 4)
                assert len(checkpoints.kept(other.directory.place(session.id), session.id)) == 1
        checkpoints.save(place, session.id, session.awake, "a/../b")  # the generation keeps what it began with
        async with crashed(store, session) as (other, again):
            assert await digest(other, again) == await digest(store, session)

    run(test)


@pytest.mark.parametrize("back", [0, 5 * 86400])
def test_a_session_has_an_hour_after_a_restart_and_a_clock_set_back_takes_nothing(run, monkeypatch, back):
    async def test(store):
        brief, long, tiny = [
            await new_session(store, "adam", PARAMETERS, ttl_seconds=ttl) for ttl in (7200.0, 86400.0, 60.0)
        ]
        now = time.time()
        later = now - back if back else now + 80_000
        monkeypatch.setattr(time, "time", lambda: later)
        expected = (7200.0, 86400.0, 60.0) if back else (GRACE_SECONDS, 6400.0, 60.0)
        async with crashed(store, brief) as (other, _):
            for session, seconds in zip((brief, long, tiny), expected, strict=True):
                again = await other.get(session.id, {session.owner})
                assert again.deadline - time.monotonic() == pytest.approx(seconds, abs=5)

    run(test)


def test_a_session_that_expires_is_gone_from_disk(run):
    async def test(store):
        session = await new_session(store, "adam", PARAMETERS, ttl_seconds=0.01)
        async with crashed(store, session) as (other, again):
            again.deadline = 0
            await other.sweep()
            with pytest.raises(SessionExpired):
                await other.get(session.id, {session.owner})
            assert other.directory.sessions() == []

    run(test)


def test_an_idempotency_key_is_remembered(run):
    async def test(store):
        session = await create_under_key(store)
        async with crashed(store, session) as (other, _):
            assert (await create_under_key(other)).id == session.id
            assert len(other) == 1

    run(test)


async def create_under_key(store):
    return await store.create(VERSIONS["adam"], lay_out(PARAMETERS, 10**9), Plan(), "key", "fingerprint")
