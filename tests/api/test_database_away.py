"""The database gone for a while: steps go on, what needs it says so soon, and everything comes back by itself."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from optserve import Client

SOON = 8.0  # with some seconds for a busy machine
PATIENCE = 60.0


@pytest.fixture
def stopped_at_most(postgresql_server) -> Iterator[None]:
    """PostgreSQL, which others want after this test, runs at its end."""
    yield
    postgresql_server.ensure_postgres_running()


@pytest.fixture
def start(start_server) -> Iterator[Callable[..., tuple[Any, httpx.Client]]]:
    """Starts a server, and asks it with patience."""
    with ExitStack() as stack:

        def started(*options: str) -> tuple[Any, httpx.Client]:
            server = start_server(*options)
            return server, stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE))

        yield started


def wait_until(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ready(http) -> bool:
    return http.get("/readyz").status_code == 200


def succeeds(http, recipe: dict[str, Any]) -> None:
    """A worker carries a run out."""
    url = "/v1/meta-training-runs"
    run = http.post(url, json=recipe).raise_for_status().json()["id"]
    wait_until(lambda: http.get(f"{url}/{run}").json()["status"] == "succeeded")


def begin(http, optimizer: str) -> httpx.Response:
    body = {"optimizer": optimizer, "parameters": [{"name": "w", "shape": [3]}]}
    return http.post("/v1/sessions", json=body)


@pytest.mark.usefixtures("stopped_at_most")
@pytest.mark.slow
def test_postgresql_goes_and_comes_back(postgresql, postgresql_server, start, tiny_recipe, assert_problem):
    """By its URL alone, with a worker that does what is queued before and after."""
    server, http = start("--database-url", postgresql(), "--workers", "1")
    succeeds(http, tiny_recipe)
    with Client(server.url, retries=0) as client:
        session = client.sessions.create("tiny", {"w": (3,)})
        gradient = {"w": np.ones(3, np.float32)}
        session.step(gradient)
        postgresql_server.stop()
        wait_until(lambda: not ready(http), SOON)
        assert not list((server.data_dir).glob("*.db"))  # nor was there ever another database

        for _ in range(20):
            session.step(gradient)
        told = http.get("/readyz")
        assert_problem(told, "database", 503, "not-ready")
        assert told.json()["checks"]["database"].startswith("away: ")
        for method, path in (("GET", "optimizers"), ("GET", "meta-training-runs"), ("POST", "api-keys")):
            began = time.monotonic()
            body = {"name": "ada", "scope": "client"} if method == "POST" else None
            reply = http.request(method, f"/v1/{path}", json=body)
            assert time.monotonic() - began < SOON
            assert_problem(reply, "Steps go on", 503, "database-unavailable")
            assert int(reply.headers["retry-after"]) > 0
        assert begin(http, "tiny").status_code == 201  # it was asked for before
        assert begin(http, "tiny@2").status_code == 201
        assert_problem(begin(http, "rmsprop"), "database", 503, "database-unavailable")
        metrics = http.get("/metrics").text
        assert "optserve_database_up 0.0" in metrics
        assert "optserve_runs{" not in metrics

        postgresql_server.ensure_postgres_running()
        wait_until(lambda: ready(http), SOON)
        assert begin(http, "rmsprop").status_code == 201
        session.step(gradient)
    succeeds(http, {**tiny_recipe, "seed": 1})
    counted = 'optserve_runs{kind="meta-training-run",status="succeeded"} 2.0'
    wait_until(lambda: counted in http.get("/metrics").text, SOON)


def test_an_sqlite_file_is_locked_by_another_process_and_moved_away(start, assert_problem):
    """While it is locked reading goes on, and writing waits for some seconds. While it is gone, no other is begun."""
    server, http = start()
    file, elsewhere = server.data_dir / "optserve.db", server.data_dir / "elsewhere.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    refused = http.post("/v1/api-keys", json={"name": "ada", "scope": "client"})
    assert time.monotonic() - began < SOON
    assert_problem(refused, "database", 503, "database-unavailable")
    assert begin(http, "adam").status_code == 201
    assert ready(http)
    other.execute("COMMIT")
    other.close()

    file.rename(elsewhere)
    wait_until(lambda: not ready(http), SOON)
    http.get("/v1/optimizers")
    assert not file.exists()
    elsewhere.rename(file)
    wait_until(lambda: ready(http), SOON)
    assert http.post("/v1/api-keys", json={"name": "ada", "scope": "client"}).status_code == 201
