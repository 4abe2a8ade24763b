"""RemoteOptimizer(fallback="local"): no step is lost, taken twice, or other than with a server that is never away."""

import logging
import pickle
import time

import pytest
import torch
from tests.client.test_torch_battery import equal
from tests.client.test_torch_local import STEPS, groups, parameters, same, take
from tests.torture.servers import Server

from optserve import Client, errors
from optserve.torch import RemoteOptimizer, fallback

ALL_REQUESTS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")
KINDS = ("hierarchical", "lstm", "adam")
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """A server that is away is asked again at every step."""
    monkeypatch.setattr(fallback, "ASK_EVERY", 0.0)
    monkeypatch.setattr(fallback, "_SHARE", 0)


@pytest.fixture
def unsteady(relay):
    """A client behind the relay that tries once."""
    with Client(relay.url, retries=0) as client:
        yield client


@pytest.fixture
def told(caplog):
    """The warnings so far of a server that is away or back."""
    with caplog.at_level(logging.WARNING, "optserve"):
        yield lambda: [text for record in caplog.records if "server" in (text := record.getMessage())]


@pytest.fixture
def undisturbed(client):
    """The parameters and the digests of the sessions after a loop whose server is never away."""

    def run(name):
        some, known = parameters(), ids(client)
        optimizer = RemoteOptimizer(groups(some), name, client, horizon=STEPS)
        take(optimizer, some, range(STEPS))
        return some, digests(client, known), optimizer.state_dict()

    return run


def ids(client):
    return {session.id for session in client.sessions.list()}


def digests(client, known):
    return [session.digest().sha256 for session in client.sessions.list() if session.id not in known]


@every_kind
@pytest.mark.parametrize("kept", [1000, 3])
def test_a_server_that_is_away_for_a_while(client, relay, unsteady, told, undisturbed, monkeypatch, name, kept):
    monkeypatch.setattr(fallback, "LEAST_BYTES", 0)
    monkeypatch.setattr(fallback, "STATES_OF_STEPS", 0)
    monkeypatch.setattr(fallback, "LEAST_STEPS", kept)
    expected, expected_digests, expected_state = undisturbed(name)
    some, known = parameters(), ids(client)
    optimizer = RemoteOptimizer(groups(some), name, unsteady, horizon=STEPS, fallback="local")
    take(optimizer, some, range(6))
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(6, 9))
    assert ["the server is away" in text for text in told()] == [True]
    relay.refuse = ()
    take(optimizer, some, range(9, 12))
    assert ["the server is back" in text for text in told()] == [False, True]
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(12, 15))
    assert len(told()) == 3
    relay.refuse = ()
    take(optimizer, some, range(15, STEPS))
    assert len(told()) == 4
    assert same(some, expected)
    assert equal(optimizer.state_dict(), expected_state)
    assert digests(client, known) == expected_digests


@every_kind
def test_a_step_that_the_server_took_and_did_not_answer_is_taken_once(relay, unsteady, told, undisturbed, name):
    expected, _, expected_state = undisturbed(name)
    some = parameters()
    optimizer = RemoteOptimizer(groups(some), name, unsteady, horizon=STEPS, fallback="local")
    for step in range(STEPS):
        relay.lose = step in (4, 11)
        take(optimizer, some, [step])
    assert relay.lost == 2
    assert len(told()) == 4
    assert same(some, expected)
    assert equal(optimizer.state_dict(), expected_state)


def test_hyperparameters_that_were_changed_meanwhile(client, relay, unsteady):
    def run(at, refusals, **options):
        some = parameters()
        optimizer = RemoteOptimizer(some, "adam", at, lr=0.01, betas=(0.8, 0.9), **options)
        for betas, refused in zip(((0.8, 0.9), (0.5, 0.6), (0.7, 0.8), (0.7, 0.8)), refusals, strict=True):
            relay.refuse = refused
            optimizer.param_groups[0]["betas"] = betas
            take(optimizer, some, range(5))
        return some

    expected = run(client, [()] * 4)
    assert same(run(unsteady, [(), (), ALL_REQUESTS, ()], fallback="local"), expected)


def test_what_is_done_meanwhile(client, relay, unsteady, undisturbed):
    """Saving, loading, copying, and a group that is added, whose session is opened when the server is back."""
    expected, _, expected_state = undisturbed("hierarchical")
    some = parameters()
    optimizer = RemoteOptimizer(groups(some), "hierarchical", unsteady, horizon=STEPS, fallback="local")
    take(optimizer, some, range(5))
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(5, 8))
    optimizer.load_state_dict(optimizer.state_dict())
    take(optimizer, some, range(8, 11))
    optimizer, some = pickle.loads(pickle.dumps((optimizer, some)))
    take(optimizer, some, range(11, 14))
    late, known = torch.zeros(4, requires_grad=True), ids(client)
    optimizer.add_param_group({"params": [late]})
    relay.refuse = ()
    take(optimizer, some, range(14, STEPS))
    assert same(some, expected)
    late.grad = torch.ones(4)
    for p in some:
        p.grad = None
    optimizer.step(loss=1.0)
    assert len(ids(client) - known) == 3
    state_dict = optimizer.state_dict()["state"]
    assert equal({index: state_dict[index] for index in range(3)}, expected_state["state"])


def test_a_session_that_is_gone_when_the_server_is_back_is_opened_anew(client, relay, unsteady, undisturbed):
    expected, expected_digests, _ = undisturbed("lstm")
    some, known = parameters(), ids(client)
    optimizer = RemoteOptimizer(groups(some), "lstm", unsteady, horizon=STEPS, fallback="local")
    take(optimizer, some, range(6))
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(6, 12))
    for session in client.sessions.list():
        if session.id not in known:
            session.close()
    relay.refuse = ()
    take(optimizer, some, range(12, STEPS))
    assert same(some, expected)
    assert digests(client, known) == expected_digests


def test_a_server_that_does_not_take_the_state_back_is_told_of_once(relay, unsteady, told, undisturbed, monkeypatch):
    expected, _, _ = undisturbed("adam")
    some = parameters()
    optimizer = RemoteOptimizer(groups(some), "adam", unsteady, horizon=STEPS, fallback="local")
    take(optimizer, some, range(6))
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(6, 8))
    relay.refuse = ()

    def full(*_):
        raise errors.StateTooLarge("no room")

    with monkeypatch.context() as patch:
        patch.setattr("optserve.session.Session.load_state", full)
        take(optimizer, some, range(8, 11))
    assert ["does not take the hidden state back (no room)" in text for text in told()] == [False, True]
    take(optimizer, some, range(11, STEPS))
    assert len(told()) == 3
    assert same(some, expected)


def test_errors_that_are_no_absence_are_raised(unsteady, client):
    some = parameters()
    optimizer = RemoteOptimizer(some, "adam", unsteady, fallback="local")
    known = ids(client)
    take(optimizer, some, range(2))
    with pytest.raises(errors.HyperparametersInvalid, match="no hyperparameter 'momentum'"):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "momentum": 0.5})
    for session in client.sessions.list():
        if session.id not in known:
            session.close()
    with pytest.raises(errors.SessionNotFound):
        take(optimizer, some, [2])
    with pytest.raises(ValueError, match="must be 'local' or None"):
        RemoteOptimizer(some, "adam", unsteady, fallback="here")


def test_a_server_that_is_away_is_asked_seldom(relay, unsteady, monkeypatch):
    monkeypatch.setattr(fallback, "ASK_EVERY", 30.0)
    some = parameters()
    optimizer = RemoteOptimizer(some, "adam", unsteady, fallback="local")
    take(optimizer, some, range(2))
    relay.refuse = ALL_REQUESTS
    take(optimizer, some, range(2, 4))
    relay.refuse = ()
    asked = relay.accepted
    take(optimizer, some, range(4, STEPS))
    assert relay.accepted == asked


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again(tmp_path, told):
    server = Server(tmp_path)
    server.start()
    server.wait_until_ready()
    with Client(server.url, retries=1) as client:
        expected = parameters()
        take(RemoteOptimizer(groups(expected), "hierarchical", client, horizon=STEPS), expected, range(STEPS))
        some = parameters()
        optimizer = RemoteOptimizer(groups(some), "hierarchical", client, horizon=STEPS, fallback="local")
        take(optimizer, some, range(6))
        server.kill()
        take(optimizer, some, range(6, 12))
        server.start()
        server.wait_until_ready()
        time.sleep(0.1)
        take(optimizer, some, range(12, STEPS))
        assert same(some, expected)
        assert ["away" in told()[0], "back" in told()[1]] == [True, True]
    server.stop()
