"""A session's state as a snapshot and back: h_t, the clocks and θ, the history, and the last step with its reply."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from optserve.wire.gradients import STORAGE
from optserve.wire.guard import GuardEvent, GuardNote
from optserve_server.sessions import state
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.history import History
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.storage.records import Body
from optserve_server.sessions.storage.snapshots import Snapshot


def take_snapshot(session: str, awake: Awake) -> Snapshot:
    """A copy of all that a session has to remember."""
    sections = lasting_sections(awake)
    last: dict[str, Any] | None = None
    if awake.last is not None:
        gradients, updates = awake.last
        sections |= {"gradients": gradients.body.octets.data, "updates": updates.view(np.uint8).data}
        last = {"loss": gradients.loss, "skip": sorted(gradients.selection.skipped)}
        if awake.guard_notes:
            last["guard"] = [asdict(note) for note in awake.guard_notes]
    return Snapshot(session, awake.next_step, {"last": last, "approximate": awake.is_approximate}, sections)


def lasting_sections(awake: Awake) -> dict[str, Any]:
    """The sections of all that a session has to remember beside its last step."""
    sections: dict[str, Any] = {"state": state.encode(awake), "history": awake.history.to_bytes()}
    if awake.history.guard_events:
        sections["guard_events"] = json.dumps([asdict(event) for event in awake.history.guard_events]).encode()
    return sections


def put_snapshot(awake: Awake, snapshot: Snapshot) -> None:
    """Let a session go on from a snapshot.

    Raises:
        StateMalformed, StateMismatch: it is not of this session.
        StateTooLarge: there is no room for its θ.
    """
    state.decode(awake, snapshot.sections["state"])
    awake.history = History.from_bytes(snapshot.sections["history"])
    awake.history.guard_events = [
        GuardEvent(**event) for event in json.loads(snapshot.sections.get("guard_events", b"[]"))
    ]
    awake.is_approximate = snapshot.fields["approximate"]
    last = snapshot.fields["last"]
    if last is not None:
        body = Body(len(snapshot.sections["gradients"]))
        body.octets[:] = np.frombuffer(snapshot.sections["gradients"], np.uint8)
        gradients = StepGradients(awake.layout.select(last["skip"]), awake.dtype, last["loss"], body)
        awake.last = gradients, np.frombuffer(snapshot.sections["updates"], STORAGE[awake.dtype])
        awake.guard_notes = tuple(GuardNote(**note) for note in last.get("guard", ()))
