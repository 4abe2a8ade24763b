"""What belongs to one key is not there for others."""

import time

import httpx
import pytest

import optserve
from optserve import errors
from optserve_server.settings import Settings

ONE = {"w": (1,)}


@pytest.fixture
def client(served):
    with served.client("client") as client:
        yield client


@pytest.fixture
def others(served):
    """Clients with other keys, of both scopes."""
    with served.client("other client") as client, served.client("admin") as admin:
        yield client, admin


def test_sessions_of_other_keys_do_not_exist(client, others):
    session = client.sessions.create("adam", ONE)
    assert session.id in [one.id for one in client.sessions.list()]
    for other in others:
        assert session.id not in [one.id for one in other.sessions.list()]
        with pytest.raises(errors.SessionNotFound) as told:
            other.sessions.get(session.id)
        assert "another key's" in str(told.value)
        with pytest.raises(errors.SessionNotFound) as of_none:
            other.sessions.get("0" * 32)
        assert told.value.detail == of_none.value.detail.replace("0" * 32, session.id)
    assert client.sessions.get(session.id).id == session.id
    session.close()


def test_nor_is_it_told_that_they_have_expired(client, served):
    session = client.sessions.create("adam", ONE, ttl_seconds=0.01)
    path = f"/v1/sessions/{session.id}"
    for _ in range(2):  # before the expired ones are swept away, and behind
        assert served.get("client", path).json()["type"] == "urn:optserve:problem:session-expired"
        assert served.get("other client", path).json()["type"] == "urn:optserve:problem:session-not-found"
        time.sleep(1.2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("sessions", {"optimizer": "adam", "parameters": [{"name": "w", "shape": [1]}]}),
        ("api-keys", {"name": "made once", "scope": "client"}),
    ],
)
def test_an_idempotency_key_is_one_callers(served, path, body):
    """Or whoever guesses one would be handed what another has made: a session, or a key."""
    replies = {}
    for admin in ("admin", "other admin"):
        headers = {**served.headers(admin), "Idempotency-Key": "mine"}
        body = {**body, "name": f"made by {admin}"} if path == "api-keys" else body
        replies[admin] = [httpx.post(f"{served.url}/v1/{path}", json=body, headers=headers) for _ in range(2)]
        assert [reply.status_code for reply in replies[admin]] == [201, 201]
    ids = [reply.json()["id"] for made in replies.values() for reply in made]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_revoked_key_ends_what_it_still_watches(served, tiny_recipe):
    with served.client("admin") as admin:
        key = {"Authorization": f"Bearer {admin.api_keys.create('watcher', 'admin').key}"}
        path = f"{served.url}/v1/meta-training-runs"
        run = httpx.post(path, json=tiny_recipe, headers=key, timeout=60).json()
        with httpx.stream("GET", f"{path}/{run['id']}/metrics", headers={**key, "Accept": "text/event-stream"}) as told:
            admin.api_keys.revoke("watcher")
            assert "event: end" not in list(told.iter_lines())
    assert told.is_closed


def test_the_next_key_of_a_name_takes_over(served):
    """So a key is exchanged without the training loops noticing."""
    with served.client("admin") as admin:
        with optserve.Client(served.url, admin.api_keys.create("rotated").key) as before:
            session = before.sessions.create("adam", ONE)
            before.sessions.get(session.id).step({"w": [1.0]})
            admin.api_keys.revoke("rotated")
        with optserve.Client(served.url, admin.api_keys.create("rotated").key) as after:
            again = after.sessions.get(session.id)
            assert again.next_step == 1
            again.close()


def test_what_was_made_while_the_server_was_open_is_for_admins(serving, tmp_path):
    with serving(Settings(data_dir=tmp_path)) as url, optserve.Client(url) as anybody:
        session = anybody.sessions.create("adam", ONE)
        key = anybody.api_keys.create("admin", "admin").key
        with optserve.Client(url, key) as admin:
            assert admin.sessions.get(session.id).id == session.id
            with optserve.Client(url, admin.api_keys.create("client").key) as client:
                with pytest.raises(errors.SessionNotFound):
                    client.sessions.get(session.id)
                assert client.sessions.list() == []
