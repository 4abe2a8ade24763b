"""Sessions with an update guard on disk: asleep, awake again, and those that were made before there were guards."""

import json
from pathlib import Path
from typing import Any

from tests.sessions.calls import digest, step
from tests.sessions.conftest import gradients, new_session, opened

from optserve_server.sessions.description import Description
from optserve_server.sessions.guard_options import GuardOptions
from optserve_server.sessions.renewing import park
from optserve_server.sessions.session import Session
from optserve_server.sessions.stepping import StepReply, StepRequest, take_step
from optserve_server.sessions.store import SessionStore

GUARD = GuardOptions(max_update_rms=1e-9, patience=3)  # no update of an untrained optimizer is as small


async def again(store: SessionStore, session: Session, value: float, number: int) -> StepReply:
    """A step as `calls.step` takes it, with all of its reply."""
    sent = gradients(session, value)
    sent.bits[0] = -2 * value
    return await take_step(store.turns, session, StepRequest(number, sent, lambda: None, 0, bytes))


def test_a_session_wakes_from_its_snapshot_and_from_its_journal_with_the_guard_it_had(run) -> None:
    async def test(store: SessionStore) -> None:
        session, other = [await new_session(store, "hierarchical", guard=GUARD) for _ in range(2)]
        for number in range(5):
            await step(store, session, 1 + number)
            await step(store, other, 1 + number)
            if number == 2:
                await park(store.turns, session)  # with a snapshot
            if number == 4:
                await store.waking.drop(session)  # without
        repeated = await again(store, session, 5.0, 4)
        assert repeated.is_repeated
        assert [(note.event, note.reason) for note in repeated.guard_notes] == [("held", "update-rms")]
        assert not repeated.is_approximate
        assert await digest(store, session) == await digest(store, other)
        awake = session.awake
        assert awake is not None
        assert [(event.step, event.event) for event in awake.history.guard_events] == [(0, "fallback")]
        await park(store.turns, session)
        repeated = await again(store, session, 5.0, 4)  # told by the snapshot alone
        assert [(note.event, note.reason) for note in repeated.guard_notes] == [("held", "update-rms")]

    run(test)


def test_a_session_made_before_there_were_guards_has_none(tmp_path: Path, monkeypatch: Any) -> None:
    import asyncio

    to_json = Description.to_json
    monkeypatch.setattr(
        Description, "to_json", lambda self: {name: one for name, one in to_json(self).items() if name != "guard"}
    )

    async def test() -> None:
        async with opened(tmp_path) as store:
            session = await new_session(store, "hierarchical", guard=None)
            expected = [await step(store, session, 1.0) for _ in range(3)]
        (file,) = tmp_path.glob("*/session.json")
        assert b"guard" not in file.read_bytes()
        async with opened(tmp_path) as store:
            found = await store.get(session.id, {session.owner})
            reply = await again(store, found, 1.0, 2)
            assert (bytes(reply.body), reply.guard_notes) == (expected[-1], ())
            await step(store, found, 1.0)
            assert found.awake is not None
            assert found.awake.guard is None

    asyncio.run(test())


def test_a_description_keeps_its_guard(run) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store, "lstm", guard=GUARD)
        described = json.loads(json.dumps(session.description.to_json()))
        assert Description.from_json(described).plan.guard == GUARD

    run(test)


def test_hidden_state_takes_little_more_for_it(run) -> None:
    """Nothing a coordinate where the optimizer has Adam's moments, and two numbers where it has not."""

    async def test(store: SessionStore) -> None:
        for name, numbers in (("hierarchical", 0), ("small_fc", 0), ("lstm", 2)):
            sizes = []
            for guard in (None, GuardOptions()):
                session = await new_session(store, name, (("w", (10_000,)),), guard=guard)
                assert session.awake is not None
                sizes.append(session.awake.state_bytes)
            assert 0 <= sizes[1] - sizes[0] - 4 * numbers * 10_000 < 100

    run(test)
