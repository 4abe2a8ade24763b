"""load_state_dict and close where something fails on the way: all of it happens, or nothing does."""

import time

import pytest
import torch

from optserve import Client, errors
from optserve.torch import RemoteOptimizer


def parameter(size=3):
    p = torch.ones(size, requires_grad=True)
    p.grad = torch.ones(size)
    return p


def picture(optimizer):
    """Everything that a state_dict says, comparable."""
    return str(optimizer.state_dict())


@pytest.fixture
def unsteady(relay):
    """A client behind the relay that tries once."""
    with Client(relay.url, retries=0) as client:
        yield client


@pytest.mark.parametrize("refused", [b"GET", b"POST", b"PUT"])
def test_loading_that_fails_half_way_changes_nothing(relay, unsteady, refused):
    optimizer = RemoteOptimizer([parameter()], "adam", unsteady, lr=0.5)
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    before = picture(optimizer)
    relay.refuse = refused
    with pytest.raises(errors.ConnectionFailed):
        optimizer.load_state_dict(saved)
    relay.refuse = b""
    assert picture(optimizer) == before
    optimizer.load_state_dict(saved)
    assert picture(optimizer) == str(saved)


def test_old_sessions_that_cannot_be_deleted_do_not_hinder_loading(relay, unsteady):
    optimizer = RemoteOptimizer([parameter()], "adam", unsteady)
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.step()
    relay.refuse = b"DELETE"
    optimizer.load_state_dict(saved)
    assert picture(optimizer) == str(saved)


def test_after_a_close_that_failed_it_begins_anew(relay, unsteady):
    optimizer = RemoteOptimizer([parameter()], "adam", unsteady)
    optimizer.step()
    relay.refuse = b"DELETE"
    with pytest.raises(errors.ConnectionFailed):
        optimizer.close()
    relay.refuse = b""
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_the_count_of_steps_begins_anew_after_close(client):
    p = parameter()
    optimizer = RemoteOptimizer([p], "adam", client)
    optimizer.step()
    optimizer.close()
    assert p not in optimizer.state
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


def test_a_version_that_is_not_there_changes_nothing(client):
    optimizer = RemoteOptimizer([parameter()], "adam", client, lr=0.5)
    optimizer.step()
    before, strange = picture(optimizer), optimizer.state_dict()
    strange["param_groups"][0].update(sha256="0" * 64, lr=0.1)
    for state in (strange["state"], {}):  # with and without a step taken
        with pytest.raises(errors.VersionNotFound):
            optimizer.load_state_dict({**strange, "state": state})
        assert picture(optimizer) == before


def test_a_state_dict_of_another_optimizer_makes_it_that_optimizer(client):
    saved = RemoteOptimizer([parameter()], "rnnprop", client).state_dict()
    optimizer = RemoteOptimizer([parameter()], "adam", client, lr=0.5)
    optimizer.load_state_dict(saved)
    optimizer.add_param_group({"params": [parameter()]})
    optimizer.step()
    first, second = optimizer.state_dict()["param_groups"]
    assert {**first, "params": [1]} == {**second, "params": [1]}
    assert (second["optimizer"], second["lr"]) == ("rnnprop", 1)


def test_groups_of_several_versions_are_refused(client):
    one = RemoteOptimizer([{"params": [parameter()]}, {"params": [parameter()]}], "adam", client)
    mixed = one.state_dict()
    mixed["param_groups"][1]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="2 optimizer versions"):
        one.load_state_dict(mixed)


def test_sessions_expire_when_asked_to_and_closing_them_then_is_no_error(client):
    known = {session.id for session in client.sessions.list()}
    optimizer = RemoteOptimizer([parameter()], "adam", client, ttl_seconds=1)
    optimizer.step()
    (session,) = [one for one in client.sessions.list() if one.id not in known]
    assert session.info.ttl_seconds == 1
    time.sleep(1.1)
    with pytest.raises(errors.SessionExpired):
        session.digest()
    session.close()
    optimizer.close()
