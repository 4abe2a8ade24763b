"""A replay of what is on disk gives what was, and tells where it does not."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sessions.conftest import VERSIONS, new_session, opened
from tests.sessions.test_rewinding import put_theta, save, steps

from optserve_server.sessions import awake, log, rewinding
from optserve_server.sessions.changing import update
from optserve_server.sessions.description import Description
from optserve_server.sessions.replaying import Replay, replay_all
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.directory import read_description


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session that has been through everything: 30 steps, the last 26 of them retained."""
    monkeypatch.setattr(log, "SNAPSHOT_STEPS", 5)

    async def live() -> Path:
        async with opened(tmp_path, sync=False) as store:
            session = await new_session(store, "lstm")
            await put_theta(store, session, 0.5)
            await steps(store, session, 4)
            await save(store, session, "kept")
            await steps(store, session, 4)
            await rewinding.restore(store.turns, session, "kept")
            await steps(store, session, 16)
            await update(store.turns, session, {"label": "changed"})
            await rewinding.rewind(store.turns, session, 18)
        async with opened(tmp_path, sync=False) as store:
            session = await store.get(session.id, {session.owner})
            await steps(store, session, 12)
            return store.directory.place(session.id)

    return asyncio.run(live())


def replayed(place: Path, version: str = "lstm") -> Replay:
    return replay_all(place, Description.from_json(read_description(place)), VERSIONS[version])


def test_the_journals_lead_from_snapshot_to_snapshot(place: Path) -> None:
    assert replayed(place) == Replay(replayed_steps=26, same_kernel=True, damage=())


def test_a_snapshot_of_another_state_is_told(place: Path) -> None:
    path = sorted(place.glob("*.snapshot"))[-1]
    found = snapshots.read(path)
    state = bytearray(found.sections["state"])
    state[-1] ^= 1
    snapshots.write(path, replace(found, sections={**found.sections, "state": bytes(state)}))
    assert [(damage.file, "does not lead to this state" in damage.reason) for damage in replayed(place).damage] == [
        (path.name, True)
    ]


def test_updates_that_are_others_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phi = {name: weight * 1.5 for name, weight in VERSIONS["lstm"].phi.items()}
    monkeypatch.setitem(VERSIONS, "lstm", replace(VERSIONS["lstm"], phi=phi))
    reasons = {damage.reason for damage in replayed(place).damage}
    assert "its steps give other updates than they once gave" in reasons


def test_with_another_kernel_other_bits_are_no_damage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "kernel_identity", lambda kind: f"another {kind}")
    assert replayed(place) == Replay(replayed_steps=26, same_kernel=False, damage=())
