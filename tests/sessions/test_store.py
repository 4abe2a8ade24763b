"""The store: turns, ends and memory, without HTTP."""

import asyncio
import time

import numpy as np
import pytest
import torch

from optserve_server.optimizers import build
from optserve_server.sessions.awake import INLINE_COORDINATES
from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.stepping import StepRequest, take_step
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.store import SessionStore


def learned(name, digit, **architecture):
    optimizer = build(architecture)
    return ServedVersion(name, 1, digit * 64, optimizer, optimizer.initial_phi(torch.Generator().manual_seed(1)))


VERSIONS = {
    "adam": ServedVersion("adam", 1, "a" * 64, build({"kind": "adam"}), {}),
    "sgd": ServedVersion("sgd", 1, "b" * 64, build({"kind": "sgd"}), {}),
    "lstm": learned("lstm", "c", kind="lstm", hidden_size=3),
    "hierarchical": learned("hierarchical", "d", kind="hierarchical"),
    "small_fc": learned("small_fc", "e", kind="small_fc"),
}
SIZES = [10, 10 * INLINE_COORDINATES]


def new_session(store, name="adam", size=10, **plan):
    return store.create(VERSIONS[name], lay_out([("w", (size,))], 10**9), Plan(**plan))


def gradients(session, value=1.0):
    sent = StepGradients(session.layout.complete, session.dtype)
    sent.bits[:] = value
    return sent


def ask(session, number=0):
    """A step that is asked for; its reply is the updates themselves."""
    return StepRequest(number, gradients(session), lambda: None, 0, lambda updates: updates)


def run(test):
    async def with_store():
        store = SessionStore(StateMemory(1 << 30))
        store.start()
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(with_store())


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_all_memory_comes_back(name, size):
    async def test(store):
        for end in ("delete", "expire"):
            session = new_session(store, name, size)
            awake = session.awake
            awake.hold_theta(awake.read_parameters(np.ones(size, np.float32)))
            await take_step(store.turns, session, ask(session))
            awake.save("one")
            awake.restore("one")
            awake.save("two")
            awake.save("one")
            assert store.memory.used > 0
            if end == "delete":
                await store.delete(session.id, {session.owner})
            else:
                session.prolong(1e-6)
                await asyncio.sleep(0.001)
                await store.sweep()
            assert (store.memory.used, len(store)) == (0, 0)

    run(test)


@pytest.mark.parametrize("size", SIZES)
def test_work_once_begun_is_done_before_the_next_although_its_caller_is_cancelled(size):
    async def test(store):
        session = new_session(store, size=size)
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
def test_who_waits_for_a_session_that_goes_away_is_told(size):
    async def test(store):
        session = new_session(store, size=size)
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
def test_large_steps_and_bodies_leave_the_event_loop_free(size, parsed_bytes):
    async def test(store):
        session = new_session(store, size=size)
        step = asyncio.create_task(store.turns.run(session, lambda awake: time.sleep(0.3), parsed_bytes))
        start = time.perf_counter()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.perf_counter() - start < 0.2
        assert not step.done()
        await step

    run(test)


def test_an_expired_session_is_known_as_such_before_and_after_the_sweep():
    async def test(store):
        session = new_session(store, ttl_seconds=0.001)
        await asyncio.sleep(0.002)
        for _ in range(2):
            with pytest.raises(SessionExpired):
                store.get(session.id, {session.owner})
            await store.sweep()
        assert len(store) == 0

    run(test)


def test_a_session_in_use_does_not_expire():
    async def test(store):
        session = new_session(store, ttl_seconds=0.001)
        async with session.turn:
            await asyncio.sleep(0.002)
            await store.sweep()
            assert store.get(session.id, {session.owner}) is session

    run(test)
