"""Going back and forking: whatever a session has been through, its state at a step is what it was."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sessions.calls import SNAPSHOT_STEPS, digest, history, is_approximate, put_theta, save, step, steps
from tests.sessions.conftest import gradients, new_session, opened
from tests.sessions.storage.test_journal import files_at_most

from optserve_server.sessions import awake, log, renewing, rewinding, state
from optserve_server.sessions.changing import put_state, update
from optserve_server.sessions.errors import CheckpointNotFound, StepNotRetained, StorageFull
from optserve_server.sessions.history import MOST_ITEMS
from optserve_server.sessions.session import Session
from optserve_server.sessions.stepping import StepRequest, take_step
from optserve_server.sessions.storage.verification import verify
from optserve_server.sessions.store import SessionStore


@pytest.fixture(autouse=True)
def _many_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SNAPSHOT_STEPS", SNAPSHOT_STEPS)


# --- anything, in any order -------------------------------------------------------------------------------------------

RETAINED_STEPS = 12  # rather than 50

OPERATIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 9)),
    st.tuples(st.just("rewind"), st.floats(0, 1)),
    st.tuples(st.just("fork"), st.floats(0, 1)),
    st.tuples(st.just("patch"), st.sampled_from([0.25, 2.0])),
    st.tuples(st.just("theta"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["save", "restore", "restart"]), st.just(0)),
)


@dataclass
class Trail:
    """What led to a session's state: the lr of each step, the θ that was put before a step, the digest at each step."""

    lrs: list[float] = field(default_factory=list)
    thetas: dict[int, float] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)

    @property
    def next_step(self) -> int:
        return len(self.lrs)

    def until(self, step: int) -> "Trail":
        thetas = {at: value for at, value in self.thetas.items() if at <= step}
        return Trail(self.lrs[:step], thetas, self.digests[: step + 1])


@dataclass
class Traveller:
    """A session, and what is known of it."""

    session: Session
    trail: Trail
    oldest: int = 0  # from here on it is promised that it can go back
    lr: float = 0.5
    saved: Trail | None = None


class Travels:
    """Carries operations out on the session that was made last, and checks what comes of them."""

    def __init__(self, store: SessionStore, travellers: list[Traveller]) -> None:
        self.store, self.travellers = store, travellers

    async def begin(self) -> None:
        session = await new_session(self.store, "adam", hyperparameters={"lr": 0.5})
        self.travellers.append(Traveller(session, Trail(digests=[await digest(self.store, session)])))

    async def do(self, operation: str, argument: Any) -> None:
        one = self.travellers[-1]
        await getattr(self, operation)(one, one.session, argument)
        assert one.session.next_step == one.trail.next_step
        assert await digest(self.store, one.session) == one.trail.digests[-1]

    async def step(self, one: Traveller, session: Session, count: int) -> None:
        for _ in range(count):
            await steps(self.store, session, 1)
            one.trail.lrs.append(one.lr)
            one.trail.digests.append(await digest(self.store, session))
            one.oldest = max(one.oldest, one.trail.next_step - RETAINED_STEPS)

    async def rewind(self, one: Traveller, session: Session, where: float) -> None:
        step = one.oldest + round(where * (one.trail.next_step - one.oldest))
        await rewinding.rewind(self.store.turns, session, step)
        one.trail = one.trail.until(step)

    async def fork(self, one: Traveller, session: Session, where: float) -> None:
        step = one.oldest + round(where * (one.trail.next_step - one.oldest))
        fork = await self.store.fork(session, session.owner, None if step == one.trail.next_step else step)
        assert fork.settings == session.settings
        self.travellers.append(Traveller(fork, one.trail.until(step), step, one.lr))

    async def patch(self, one: Traveller, session: Session, lr: float) -> None:
        await update(self.store.turns, session, {"hyperparameters": {"lr": lr}, "label": f"lr {lr}"})
        one.lr = lr

    async def theta(self, one: Traveller, session: Session, value: float) -> None:
        await put_theta(self.store, session, value)
        one.trail.thetas[one.trail.next_step] = value
        one.trail.digests[-1] = await digest(self.store, session)

    async def save(self, one: Traveller, session: Session, _: Any) -> None:
        await save(self.store, session, "kept")
        one.saved = one.trail.until(one.trail.next_step)

    async def restore(self, one: Traveller, session: Session, _: Any) -> None:
        if one.saved is None:
            with pytest.raises(CheckpointNotFound):
                await rewinding.restore(self.store.turns, session, "kept")
        else:
            await rewinding.restore(self.store.turns, session, "kept")
            one.trail = one.saved.until(one.saved.next_step)
            one.oldest = one.trail.next_step

    async def check(self) -> None:
        """Each is as one is that nothing has ever happened to; its files are sound, and its history is its own."""
        for one in self.travellers:
            undisturbed = await new_session(self.store, "adam")
            for at, lr in enumerate([*one.trail.lrs, one.lr]):
                if at in one.trail.thetas:
                    await put_theta(self.store, undisturbed, one.trail.thetas[at])
                await update(self.store.turns, undisturbed, {"hyperparameters": {"lr": lr}})
                if at < one.trail.next_step:
                    await steps(self.store, undisturbed, 1)
            assert await digest(self.store, one.session) == await digest(self.store, undisturbed)
            assert await history(self.store, one.session) == await history(self.store, undisturbed)
            assert await steps(self.store, one.session, 2) == await steps(self.store, undisturbed, 2)
            found = verify(self.store.directory.place(one.session.id))
            assert found is not None
            assert found.damage == ()


async def travel(path: Path, operations: list[tuple[str, Any]]) -> None:
    travellers: list[Traveller] = []
    stretches: list[list[tuple[str, Any]]] = [[]]
    for operation in operations:
        if operation[0] == "restart":
            stretches.append([])
        else:
            stretches[-1].append(operation)
    for stretch in stretches:
        async with opened(path, sync=False) as store:
            for one in travellers:
                one.session = await store.get(one.session.id, {one.session.owner})
            travels = Travels(store, travellers)
            if not travellers:
                await travels.begin()
            for operation, argument in stretch:
                await travels.do(operation, argument)
            if stretch is stretches[-1]:
                await travels.check()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPERATIONS, min_size=3, max_size=25))
def test_the_state_at_a_step_is_what_it_was(monkeypatch: pytest.MonkeyPatch, operations: list[tuple[str, Any]]) -> None:
    monkeypatch.setattr(renewing, "RETAINED_STEPS", RETAINED_STEPS)
    with TemporaryDirectory() as directory:
        asyncio.run(travel(Path(directory), operations))


# --- one by one -------------------------------------------------------------------------------------------------------


def test_the_last_fifty_steps_are_retained_also_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        digests = []
        async with opened(tmp_path, sync=False) as store:
            session = await new_session(store)
            for _ in range(120):
                digests.append(await digest(store, session))
                await steps(store, session, 1)
        async with opened(tmp_path, sync=False) as store:
            session = await store.get(session.id, {session.owner})
            with pytest.raises(StepNotRetained) as refused:
                await rewinding.rewind(store.turns, session, 3)
            oldest = refused.value.fields["oldest_step"]
            assert 3 < oldest <= 70
            for at in (119, 70, oldest):
                await rewinding.rewind(store.turns, session, at)
                assert (session.next_step, await digest(store, session)) == (at, digests[at])
            with pytest.raises(StepNotRetained, match="has not been reached") as refused:
                await rewinding.rewind(store.turns, session, 119)
            assert refused.value.fields == {"oldest_step": oldest, "next_step": oldest}

    asyncio.run(test())


def test_the_last_step_is_answered_again_after_going_back(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        replies = await steps(store, session, 9)
        await rewinding.rewind(store.turns, session, 7)
        sent = gradients(session, 7.0)
        sent.bits[0] = -14.0
        again = await take_step(
            store.turns, session, StepRequest(6, sent, lambda: None, 0, lambda updates: updates.tobytes())
        )
        assert again.body == replies[6]
        assert await steps(store, session, 2) == replies[7:]

    run(test)


def test_where_there_is_no_room_nothing_changes(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store, parameters=(("w", (2000,)),))
        await steps(store, session, 4)
        await save(store, session, "kept")
        before = await digest(store, session)
        with files_at_most(6000):
            for going in (
                rewinding.rewind(store.turns, session, 2),
                store.fork(session, session.owner, 2),
            ):
                with pytest.raises(StorageFull):
                    await going
        assert (session.next_step, await digest(store, session), len(store)) == (4, before, 1)
        await rewinding.rewind(store.turns, session, 2)
        await steps(store, session, 1)

    run(test)


def test_a_fork_lives_on_its_own(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store, label="mine", ttl_seconds=50.0, horizon=9)
        await steps(store, session, 8)
        fork = await store.fork(session, "grace", 6)
        assert (fork.owner, fork.next_step, fork.settings) == ("grace", 6, session.settings)
        assert fork.description.plan.horizon == 9
        await store.delete(session.id, {session.owner})
        await steps(store, fork, 2)
        assert [item.step for item in await history(store, fork)] == list(range(8))

    run(test)


def test_forks_under_one_key_are_one(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await steps(store, session, 3)
        asked = [store.fork(session, session.owner, 2, "key", "the same request") for _ in range(3)]
        assert len({fork.id for fork in await asyncio.gather(*asked)}) == 1
        assert len(store) == 2

    run(test)


def test_the_history_goes_where_the_state_goes(run: Any) -> None:
    async def test(store: SessionStore) -> None:
        session = await new_session(store)
        await step(store, session, 3.0, loss=0.25)
        await step(store, session, 4.0)
        (first, second) = await history(store, session)
        assert (first.step, first.loss, second.step, second.loss) == (0, 0.25, 1, None)
        assert first.gradient_norm == pytest.approx(3 * np.sqrt(9 + 4))
        assert second.gradient_norm == pytest.approx(4 * np.sqrt(9 + 4))
        assert first.update_norm == pytest.approx(1e-3 * np.sqrt(10), rel=1e-3)  # Adam's first step
        kept = await store.turns.run(session, state.encode)
        await put_state(store.turns, session, bytes(kept))
        assert await history(store, session) == []

    run(test)


def test_that_bits_have_changed_is_told_whatever_comes_before_the_next_step(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(store: SessionStore) -> None:
        sessions = [await new_session(store, "lstm") for _ in range(4)]
        for session in sessions:
            await steps(store, session, 3)
            await store.waking.drop(session)
        monkeypatch.setattr(awake, "kernel_identity", lambda kind: "another")
        parked, rewound, forked, restored = sessions
        await digest(store, parked)
        await renewing.park(store.turns, parked)
        await store.waking.drop(parked)
        await rewinding.rewind(store.turns, rewound, 2)
        await store.waking.drop(rewound)
        fork = await store.fork(forked, forked.owner)
        await save(store, restored, "kept")
        await step(store, restored, 1.0)
        await rewinding.restore(store.turns, restored, "kept")
        for session in (parked, rewound, fork, restored):
            assert [await is_approximate(store, session) for _ in range(2)] == [True, False]
            await store.waking.drop(session)
            assert not await is_approximate(store, session)

    run(test)


def test_a_long_history_is_thinned_and_there_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, sync=False) as store:
            session = await new_session(store, "sgd")
            await steps(store, session, MOST_ITEMS + 5)
            before = await history(store, session)
        async with opened(tmp_path, sync=False) as store:
            session = await store.get(session.id, {session.owner})
            assert await history(store, session) == before
        assert [item.step for item in before] == [*range(0, MOST_ITEMS + 4, 2), MOST_ITEMS + 4]

    asyncio.run(test())
