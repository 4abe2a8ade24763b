"""What is done to a session of a store, in few words."""

from typing import Any

from tests.sessions.conftest import gradients

from optserve_server.sessions import checkpoints, state
from optserve_server.sessions.changing import put_parameters
from optserve_server.sessions.session import Session
from optserve_server.sessions.stepping import StepRequest, take_step
from optserve_server.sessions.steps import Numbers
from optserve_server.sessions.store import SessionStore

SNAPSHOT_STEPS = 5  # rather than 64: many generations in few steps


async def step(store: SessionStore, session: Session, value: float, loss: float | None = None) -> bytes:
    sent = gradients(session, value, loss)
    sent.bits[0] = -2 * value
    asked = StepRequest(session.next_step, sent, lambda: None, 0, lambda updates: updates.tobytes())
    reply = await take_step(store.turns, session, asked)
    store.renewing.look_at(session)
    return bytes(reply.body)


async def is_approximate(store: SessionStore, session: Session) -> bool:
    sent = gradients(session)
    return (
        await take_step(store.turns, session, StepRequest(session.next_step, sent, lambda: None, 0, bytes))
    ).is_approximate


async def steps(store: SessionStore, session: Session, count: int) -> list[bytes]:
    return [await step(store, session, 1 + session.next_step) for _ in range(count)]


async def digest(store: SessionStore, session: Session) -> str:
    return await store.turns.run(session, state.digest)


async def history(store: SessionStore, session: Session) -> list[Any]:
    return await store.turns.run(session, lambda awake: awake.history.items())


async def put_theta(store: SessionStore, session: Session, value: float) -> None:
    numbers = Numbers(session.layout.complete, session.dtype)
    numbers.bits[:] = value
    await put_parameters(store.turns, session, numbers, lambda: None, 0)


async def save(store: SessionStore, session: Session, name: str) -> None:
    place = store.directory.place(session.id)
    await store.turns.run(session, lambda awake: checkpoints.save(place, session.id, awake, name))
