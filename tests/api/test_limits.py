"""What a key may use at most, and what it has used."""

import asyncio
import socket
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy.exc import SQLAlchemyError

import optserve
from optserve import errors
from optserve_server.api import accounts
from optserve_server.api.accounts import Accounts, Bucket
from optserve_server.registry import usage
from optserve_server.registry.database import Database
from optserve_server.registry.usage import Counts
from optserve_server.settings import Settings

ONE = {"w": (1,)}


@pytest.fixture(scope="module")
def admin(served):
    with served.client("admin") as client:
        yield client


@pytest.fixture
def limited(served, admin, request):
    """Makes a client of a new key with these limits; a try is final."""
    made = []

    def new(**limits):
        name = f"{request.node.name} {len(made)}"[:64]
        made.append(optserve.Client(served.url, admin.api_keys.create(name, "admin", limits=limits).key, retries=0))
        return made[-1]

    yield new
    for client in made:
        client.close()


def headers_of(client):
    return {"Authorization": f"Bearer {client._options.api_key}"}


@contextmanager
def announced(url, path, count, headers, sent=b""):
    """A request that announces a body of `count` bytes and sends a part of it; gives its socket."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {count}", "Content-Type: application/json"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + sent)
        yield connection


def eventually(ask, expected):
    deadline = time.monotonic() + 5
    while (found := ask()) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


# --- sessions and runs ------------------------------------------------------------------------------------------------


def test_a_key_has_as_many_sessions_and_coordinates_as_it_may(limited):
    client = limited(sessions=2, coordinates=10)
    first = client.sessions.create("adam", {"w": (7,)})
    with pytest.raises(
        errors.QuotaExceeded, match="has 7 coordinates and may have 10; this session would be 4"
    ) as told:
        client.sessions.create("adam", {"w": (4,)})
    assert (told.value.limit, told.value.at_most, told.value.fields["used"]) == ("coordinates", 10, 7)
    second = client.sessions.create("adam", {"w": (3,)})
    with pytest.raises(errors.QuotaExceeded, match="Delete sessions") as told:
        client.sessions.create("adam", ONE)
    assert (told.value.limit, told.value.at_most) == ("sessions", 2)
    with pytest.raises(errors.QuotaExceeded, match="Delete sessions"):
        first.fork()
    uses = client.usage()
    assert (uses.sessions, uses.coordinates, uses.limits.sessions) == (2, 10, 2)
    first.close()
    with pytest.raises(errors.HyperparametersInvalid):
        client.sessions.create("adam", ONE, hyperparameters={"lr": "x"})  # what fails does not count
    client.sessions.create("adam", {"w": (7,)}, ttl_seconds=0.01)
    eventually(lambda: client.usage().sessions, 1)  # nor does what has expired
    second.close()
    assert client.usage().coordinates == 0


def test_a_key_has_as_many_runs_as_it_may(limited, tiny_recipe):
    client = limited(runs=1)
    first = client.meta_training.launch(tiny_recipe)
    with pytest.raises(
        errors.QuotaExceeded, match="has 1 meta-training runs that are not over, and may have 1"
    ) as told:
        client.meta_training.launch(tiny_recipe)
    assert told.value.limit == "runs"
    assert client.usage().runs == 1
    first.cancel()
    second = client.meta_training.launch(tiny_recipe)
    with pytest.raises(errors.QuotaExceeded):
        first.resume()
    second.cancel()


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_that_come_too_fast_are_told_when_to_come_back(served, limited):
    client = limited(requests_per_second=0.1)
    served_one, refused = (httpx.get(f"{served.url}/v1/tasks", headers=headers_of(client)) for _ in range(2))
    assert served_one.status_code == 200
    for reply in (served_one, refused):
        assert reply.headers["ratelimit-policy"] == '"requests";q=1;w=10'
        assert reply.headers["ratelimit"] == '"requests";r=0;t=10'
    assert refused.json() | {"detail": ""} == {
        "type": "urn:optserve:problem:quota-exceeded",
        "title": "A limit of this API key is reached",
        "status": 429,
        "detail": "",
        "limit": "requests_per_second",
        "at_most": 0.1,
    }
    assert 1 < int(refused.headers["retry-after"]) <= 10
    unlimited = served.get("client", "/v1/tasks")
    assert unlimited.status_code == 200
    assert "ratelimit" not in unlimited.headers
    burst = httpx.get(f"{served.url}/v1/tasks", headers=headers_of(limited(requests_per_second=50)))
    assert (burst.headers["ratelimit-policy"], burst.headers["ratelimit"]) == (
        '"requests";q=50;w=1',
        '"requests";r=49;t=1',
    )


def test_the_client_waits_as_it_is_told(served, limited):
    key = limited(requests_per_second=4)._options.api_key
    with optserve.Client(served.url, key) as patient:
        began = time.monotonic()
        for _ in range(7):
            patient.tasks.list()
        assert time.monotonic() - began > 0.7


def test_a_bucket_fills_at_its_rate(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(accounts, "monotonic", lambda: now)
    bucket = Bucket()
    assert [bucket.take(2) for _ in range(3)] == [0, 0, 0.5]
    now += 0.5
    assert [bucket.take(2) for _ in range(2)] == [0, 0.5]
    now += 3600
    assert [bucket.take(2) for _ in range(3)] == [0, 0, 0.5]  # no more than a second's
    slow = Bucket()
    assert [slow.take(0.1) for _ in range(2)] == [0, 10]
    now += 9
    assert slow.take(0.1) == pytest.approx(1)


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_key_has_as_many_bytes_in_flight_as_it_may(served, limited):
    client = limited(bytes_in_flight=1000)
    url, headers = f"{served.url}/v1/sessions", headers_of(client)

    def post(count, chunked=False):
        body = b"{" + b" " * (count - 1)
        content = (body[at : at + 100] for at in range(0, count, 100)) if chunked else body
        return httpx.post(url, content=content, headers={**headers, "Content-Type": "application/json"})

    alone = post(1001)
    assert (alone.status_code, alone.json()["limit"], alone.json()["at_most"]) == (429, "bytes_in_flight", 1000)
    assert "retry-after" not in alone.headers  # waiting would not help
    assert post(1000).status_code == 400
    assert post(1001, chunked=True).status_code == 429
    assert post(1000, chunked=True).status_code == 400
    with announced(served.url, "/v1/sessions", 800, headers, b"{") as waiting:
        eventually(lambda: client.usage().bytes_in_flight, 800)
        for chunked in (False, True):
            refused = post(300, chunked)
            assert (refused.status_code, refused.headers.get("retry-after")) == (429, "1")
        assert post(200).status_code == 400
        waiting.sendall(b" " * 799)
        assert waiting.recv(1 << 16).startswith(b"HTTP/1.1 400")
    eventually(lambda: client.usage().bytes_in_flight, 0)


def test_the_server_holds_as_many_bytes_of_bodies_as_it_has_room_for(serving, tmp_path):
    body = {"optimizer": "adam", "parameters": [{"name": "w", "shape": [1]}]}
    with serving(Settings(data_dir=tmp_path, body_memory=1 << 20, max_sessions=1)) as url:
        sessions = f"{url}/v1/sessions"
        with announced(url, "/v1/sessions", 1_000_000, {}):
            with optserve.Client(url) as client:
                eventually(lambda: client.usage().bytes_in_flight, 1_000_000)
            refused = httpx.post(sessions, content=b"{" + b" " * 60_000)
            assert refused.json()["type"] == "urn:optserve:problem:server-busy"
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["bytes_free"] == (1 << 20) - 1_000_000
            assert httpx.post(sessions, json=body).status_code == 201
        with optserve.Client(url) as client:
            eventually(lambda: client.usage().bytes_in_flight, 0)  # for whoever announced them has hung up
        alone = httpx.post(sessions, content=b"{" + b" " * 3_000_000, headers={"Content-Type": "application/json"})
        assert alone.json()["type"] == "urn:optserve:problem:malformed-body"  # though it is longer than that
        # Limits from the settings are for those without a key too.
        assert httpx.post(sessions, json=body).json()["limit"] == "sessions"


# --- usage ------------------------------------------------------------------------------------------------------------


def test_what_a_key_has_used_is_counted_and_outlives_the_server(serving, tmp_path):
    with serving(Settings(data_dir=tmp_path)) as url, optserve.Client(url) as anybody:
        admin = optserve.Client(url, anybody.api_keys.create("ada", "admin").key)
        session = admin.sessions.create("adam", {"w": (1000,)})
        for _ in range(3):
            session.step_flat([1.0] * 1000)
        uses = admin.usage()
        assert (uses.key, uses.steps, uses.requests, uses.sessions, uses.coordinates) == ("ada", 3, 5, 1, 1000)
        assert 12_000 < uses.bytes_received < 12_400
        assert 12_000 < uses.bytes_sent < 13_000
        admin.api_keys.create("grace")
    with serving(Settings(data_dir=tmp_path)) as url:
        again = optserve.Client(url, admin._options.api_key)
        with optserve.Client(url, again.api_keys.create("bob").key) as bob:
            assert bob.usage().requests == 1
            with pytest.raises(errors.Forbidden):
                bob.api_keys.usage("ada")
        eventually(lambda: (again.usage().sessions, again.usage().coordinates), (1, 1000))  # which sleep on disk
        known = again.api_keys.usage("ada")
        assert known.steps == 3
        assert known.requests > 8
        assert again.api_keys.usage("grace").requests == 0
        with pytest.raises(errors.ApiKeyNotFound):
            again.api_keys.usage("gracce")
        again.close()
    admin.close()


def test_what_is_used_is_written_once_though_the_database_was_away(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'late.db'}")
    kept = Accounts(database)
    kept.of("ada").requests += 3

    async def write():
        with pytest.raises(SQLAlchemyError):
            await kept.write()
        database.upgrade()
        for _ in range(2):
            await kept.write()

    asyncio.run(write())
    kept.of("ada").requests += 1
    with database.session() as db_session:
        assert usage.get(db_session, "ada") == Counts(requests=3)
    assert kept.of("ada").unwritten() == Counts(requests=1)
    database.close()


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"sessions": -1}, "at least 0"),
        ({"requests_per_second": 0}, "above 0"),
        ({"requests_per_second": float(2**54)}, "at most"),
        ({"session": 1}, "session"),
        ({"runs": 1.5}, "runs"),
    ],
)
def test_some_limits_no_key_can_have(admin, limits, word):
    with pytest.raises(errors.RequestInvalid, match=word) as told:
        admin.api_keys.create("none", limits=limits)
    assert told.value.fields["errors"][0]["pointer"] == f"#/limits/{next(iter(limits))}"


def test_a_keys_own_limits_are_listed_and_the_rest_is_the_servers(admin):
    made = admin.api_keys.create("listed", limits={"sessions": 3})
    assert (made.limits.sessions, made.limits.runs) == (3, None)
    assert next(one for one in admin.api_keys.list() if one.id == made.id).limits == made.limits
    uses = admin.api_keys.usage("listed")
    assert (uses.limits.sessions, uses.limits.runs) == (3, Settings().max_runs)
