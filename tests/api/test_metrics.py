"""`GET /metrics`, as Prometheus reads it."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from optserve_server.settings import Settings

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

TOKEN = "a-token-for-prometheus"


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scrape(server) -> Callable[[], Samples]:
    """What the shared server counts now."""
    return lambda: samples(httpx.get(f"{server.url}/metrics").raise_for_status().text)


def read(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def gained(scrape) -> Callable[..., float]:
    """How much a number has grown since the test began."""
    before = scrape()
    return lambda name, **labels: read(scrape(), name, **labels) - read(before, name, **labels)


def test_steps_and_their_coordinates_and_seconds_are_counted(gained, new_loop, gradients):
    loop = new_loop("adam", {"w": (40,), "b": (2,)})
    for step in range(3):
        loop.step(step, gradients(42))
    loop.step(3, gradients(40), skip="b")
    assert gained("optserve_steps_total") == 4
    assert gained("optserve_coordinates_total") == 3 * 42 + 40
    for part in ("queue", "compute", "journal"):
        assert gained("optserve_step_seconds_count", part=part) == 4
    assert gained("optserve_journal_batch_records_sum") >= 4
    assert 0 < gained("optserve_step_seconds_sum", part="compute") < 4


def test_the_files_of_sessions_are_measured(gained, new_loop, gradients):
    loop = new_loop("adam", {"w": (1000,)})
    loop.step(0, gradients(1000))
    assert 2 * 4096 > gained("optserve_session_files_bytes") - 4000 > 4000  # a header, and the record of a step


def test_a_refused_step_is_none(gained, new_loop, gradients):
    loop = new_loop("adam", {"w": (4,)})
    assert loop.post(7, gradients(4).tobytes()).status_code == 409
    assert gained("optserve_steps_total") == 0


def test_sessions_and_their_memory_are_told(scrape, new_loop):
    before = scrape()
    loop = new_loop("adam", {"w": (100_000,)})
    during = scrape()
    loop.close()
    after = scrape()
    sessions = [read(found, "optserve_sessions", state="awake") for found in (before, during, after)]
    assert sessions == [sessions[0], sessions[0] + 1, sessions[0]]
    used = [read(found, "optserve_state_memory_bytes") for found in (before, during, after)]
    assert used[1] - used[0] > 2 * 4 * 100_000
    assert used[2] == used[0]
    assert used[1] < read(during, "optserve_state_memory_limit_bytes")


def test_the_process_and_its_version_are_told(scrape):
    found = scrape()
    assert read(found, "process_resident_memory_bytes") > 1e7
    assert any(name == "optserve_build_info" for name, _ in found)
    assert read(found, "optserve_requests_in_hand") == 1  # this one


def test_no_session_is_named(server, new_loop, gradients):
    loop = new_loop("adam", {"w": (4,)}, label="mine")
    loop.step(0, gradients(4))
    loop.post(7, gradients(4).tobytes())
    text = httpx.get(f"{server.url}/metrics").text
    assert loop.info["id"] not in text
    assert "mine" not in text


@pytest.fixture(scope="module")
def closed(serving, tmp_path_factory):
    """A server that has a key, and a token for whoever reads its metrics."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("metrics"), metrics_token=TOKEN)
    with serving(settings) as url:
        keys = {}
        for scope in ("admin", "client"):
            headers = {"Authorization": f"Bearer {keys['admin']}"} if keys else {}
            reply = httpx.post(f"{url}/v1/api-keys", json={"name": scope, "scope": scope}, headers=headers)
            keys[scope] = reply.raise_for_status().json()["key"]
        yield url, keys


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("client", 403), ("admin", 200)])
def test_a_server_with_keys_tells_only_admins(closed, key, status):
    url, keys = closed
    headers = {"Authorization": f"Bearer {keys[key]}"} if key else {}
    assert httpx.get(f"{url}/metrics", headers=headers).status_code == status


def test_the_token_reads_metrics_and_nothing_else(closed):
    url, _ = closed
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{url}/metrics", headers=headers).status_code == 200
    assert httpx.get(f"{url}/v1/sessions", headers=headers).status_code == 401
    for wrong in (TOKEN[:-1], TOKEN + "x", "é"):
        assert httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 401


def test_requests_are_counted_by_route_and_status(gained, new_loop, http, gradients):
    loop = new_loop("adam", {"w": (4,)})
    loop.step(0, gradients(4))
    loop.get()
    loop.post(7, gradients(4).tobytes())
    http.get("/nothing/at/all")
    http.request("PURGE", "/tasks")
    session, step = "/v1/sessions/{session_id}", "/v1/sessions/{session_id}/steps/{step}"
    for labels, count in (
        ({"method": "POST", "route": "/v1/sessions", "status": "201"}, 1),
        ({"method": "POST", "route": step, "status": "200"}, 1),
        ({"method": "POST", "route": step, "status": "409"}, 1),
        ({"method": "GET", "route": session, "status": "200"}, 1),
        ({"method": "GET", "route": "-", "status": "404"}, 1),
        ({"method": "other", "route": "/v1/tasks", "status": "405"}, 1),
    ):
        assert gained("optserve_requests_total", **labels) == count, labels


def test_problems_are_counted_by_type(server, gained, new_loop, gradients):
    loop = new_loop("adam", {"w": (4,)})
    for step in (7, 8):
        loop.post(step, gradients(4).tobytes())
    assert gained("optserve_problems_total", type="step-conflict") == 2
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        assert b" 400 " in connection.recv(1000)
    assert gained("optserve_problems_total", type="malformed-body") == 1


def test_every_metric_is_explained(server):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        kind, _, rest = line.removeprefix("# ").partition(" ")
        name = rest.split()[0]
        if kind == "TYPE" and name.startswith("optserve_"):
            assert f"`{name}" in page, name
