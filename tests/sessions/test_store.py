"""The store: turns, ends and memory, without HTTP."""

import asyncio
import time
import tracemalloc

import pytest
from tests.sessions.conftest import VERSIONS, gradients, new_session

from optserve_server.sessions.awake import INLINE_COORDINATES
from optserve_server.sessions.changing import put_parameters, update
from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.stepping import StepRequest, take_step
from optserve_server.sessions.steps import Numbers

SIZES = [10, 10 * INLINE_COORDINATES]


def sized(size):
    return [("w", (size,))]


def ask(session, number=0):
    """A step that is asked for; its reply is the updates themselves."""
    return StepRequest(number, gradients(session), lambda: None, 0, lambda updates: updates)


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_all_memory_comes_back(run, name, size):
    async def test(store):
        for end in ("delete", "expire"):
            session = await new_session(store, name, sized(size))
            numbers = Numbers(session.layout.complete, "float32")
            numbers.bits[:] = 1
            await put_parameters(store.turns, session, numbers, lambda: None, 0)
            await take_step(store.turns, session, ask(session))
            assert store.memory.used > 0
            if end == "delete":
                await store.delete(session.id, {session.owner})
            else:
                await update(store.turns, session, {"ttl_seconds": 1e-6})
                await asyncio.sleep(0.001)
                await store.sweep()
            assert (store.memory.used, len(store)) == (0, 0)
            assert [path.name for path in store.directory.path.iterdir()] == ["lock"]

    run(test)


@pytest.mark.parametrize("size", SIZES)
def test_work_once_begun_is_done_before_the_next_although_its_caller_is_cancelled(run, size):
    async def test(store):
        session = await new_session(store, parameters=sized(size))
        done = []

        def slowly(awake):
            time.sleep(0.2)
            done.append("first")

        caller = asyncio.create_task(store.turns.run(session, slowly))
        await asyncio.sleep(0.05)
        caller.cancel()
        await store.turns.run(session, lambda awake: done.append("second"))
        assert done == ["first", "second"]

    run(test)


@pytest.mark.parametrize("size", SIZES)
def test_who_waits_for_a_session_that_goes_away_is_told(run, size):
    async def test(store):
        session = await new_session(store, parameters=sized(size))
        async with session.turn:
            deletion = asyncio.create_task(store.delete(session.id, {session.owner}))
            await asyncio.sleep(0)
            late = asyncio.create_task(take_step(store.turns, session, ask(session)))
            await asyncio.sleep(0)
        await deletion
        with pytest.raises(SessionNotFound):
            await late

    run(test)


@pytest.mark.parametrize(("size", "parsed_bytes"), [(SIZES[1], 0), (SIZES[0], 100_000)])
def test_large_steps_and_bodies_leave_the_event_loop_free(run, size, parsed_bytes):
    async def test(store):
        session = await new_session(store, parameters=sized(size))
        step = asyncio.create_task(store.turns.run(session, lambda awake: time.sleep(0.3), parsed_bytes))
        start = time.perf_counter()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.perf_counter() - start < 0.2
        assert not step.done()
        await step

    run(test)


def test_an_expired_session_is_known_as_such_before_and_after_the_sweep(run):
    async def test(store):
        session = await new_session(store, ttl_seconds=0.001)
        await asyncio.sleep(0.002)
        for _ in range(2):
            with pytest.raises(SessionExpired):
                await store.get(session.id, {session.owner})
            await store.sweep()
        assert len(store) == 0

    run(test)


def test_a_session_in_use_does_not_expire(run):
    async def test(store):
        session = await new_session(store, ttl_seconds=0.001)
        async with session.turn:
            await asyncio.sleep(0.002)
            await store.sweep()
            assert await store.get(session.id, {session.owner}) is session

    run(test)


def test_names_count_as_memory():
    """A parameter of one number may have a name of a kilobyte."""
    names = [f"{number} {'é🦆' * 128}"[:256] for number in range(2000)]
    tracemalloc.start()
    layout = lay_out([(name[:-1] + name[-1], [1] * 32) for name in names], 10_000)  # copies of the names
    assert len(layout.names) == len(layout.complete.parameters) == 2000
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < layout.own_bytes < 3 * used


def test_memory_for_names_is_taken_from_the_sessions(run):
    async def test(store):
        before = store.memory.used
        await new_session(store, parameters=[(str(number), (1,)) for number in range(5000)])
        assert store.memory.used - before > 5000 * 300

    run(test)
