"""What the Python client tells of the update guard."""

import logging

import numpy as np
import pytest
import torch

from optserve import errors
from optserve.torch import RemoteOptimizer
from optserve.wire.guard import GuardEvent, GuardNote, format_notes, parse_notes

GUARD = {"max_update_rms": 2.0, "patience": 2}


def test_notes_are_read_as_they_were_written() -> None:
    names = ["w", "größe", 'a "b" \\', "größe\\", "c)(;,", "%41", "é %e9"]
    notes = [
        GuardNote("fallback", "update-rms", 7, names),
        GuardNote("held", "non-finite", 1, ["w"], afresh=True),
        GuardNote("back", "loss-rise", 9, []),
    ]
    assert parse_notes(format_notes(notes)) == notes
    assert format_notes(notes).isascii()
    assert parse_notes("") == []
    assert parse_notes('("w");event=held;new=1;reason=non-finite;count=1') == [
        GuardNote("held", "non-finite", 1, ["w"])
    ]


def test_a_session_tells_with_its_updates_and_in_its_history(client) -> None:
    with client.sessions.create("sgd", {"w": (3,), "b": ()}, hyperparameters={"lr": 1.0}, guard=GUARD) as session:
        assert (session.info.guard.max_update_rms, session.info.guard.patience) == (2.0, 2)
        small = {"w": np.ones(3), "b": 1.0}
        assert session.step(small).guard == session.guard_notes == []
        told = session.step({"w": np.full(3, 9.0), "b": 1.0}).guard
        assert told == session.guard_notes == [GuardNote("fallback", "update-rms", 1, ["w"])]
        session.step_flat(np.ones(4))
        assert session.guard_notes == [GuardNote("held", "update-rms", 1, ["w"])]
        session.step(small)
        assert session.step(small).guard == [GuardNote("back", "update-rms", 1, ["w"])]
        events = [("fallback", 1), ("back", 4)]
        assert session.guard_events() == [
            GuardEvent(step, event, "update-rms", 1, ["w"], afresh=False) for event, step in events
        ]
    with client.sessions.create("lstm", {"w": (3,)}, guard=False) as session:
        assert session.info.guard is None
    with pytest.raises(errors.RequestInvalid, match="did you mean 'patience'"):
        client.sessions.create("lstm", {"w": (3,)}, guard={"patiense": 3})


def train(optimizer, parameter, gradients) -> None:
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()


def test_a_remote_optimizer_warns_of_each_event_once(client, caplog) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = RemoteOptimizer([("weight", parameter)], "sgd", client, lr=1.0, guard=GUARD)
    with caplog.at_level(logging.WARNING, "optserve"):
        train(optimizer, parameter, [1, 9, 1, 1, 1, 1])
    messages = [record.getMessage() for record in caplog.records if record.name == "optserve"]
    assert len(messages) == 2
    assert "step 1 of" in messages[0]
    assert "steps by Adam for now: weight (the optimizer's update was too large)" in messages[0]
    assert "step 4 of" in messages[1]
    assert "own updates are back for weight" in messages[1]
    assert -6 < parameter.min() == parameter.max() < -5  # thrice by at most the magnitude of the first step
    optimizer.close()
    with pytest.raises(errors.RequestInvalid, match="did you mean 'patience'"):
        RemoteOptimizer([parameter], "lstm", client, guard={"patients": 3})


def test_a_state_dict_has_the_guard_with_it(client) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    first, second = (
        RemoteOptimizer([one], "momentum", client, lr=1.0, momentum=0.5, guard=GUARD) for one in parameters
    )
    train(first, parameters[0], [1, 9, 1])
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    second.load_state_dict(first.state_dict())
    for optimizer, parameter in zip((first, second), parameters, strict=True):
        train(optimizer, parameter, [1, 2, 0.5, 1])
    assert torch.equal(*parameters)
    for optimizer in (first, second):
        optimizer.close()
