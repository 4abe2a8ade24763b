"""A server that is told to stop: what is in hand is answered, and in ten seconds it is gone, whatever clients do."""

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from optserve import Client

WITHIN = 10.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # on a machine that does nothing else, 10 s


def stop(server) -> float:
    server.process.send_signal(signal.SIGTERM)
    return time.monotonic()


def seconds_to_end(server, began: float) -> float:
    assert server.process.wait(timeout=30) == 0, (server.data_dir.parent / "stderr").read_text()
    return time.monotonic() - began


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


@contextmanager
def half_sent(server, path: str = "/v1/sessions") -> Iterator[tuple[socket.socket, bytes]]:
    """A request in hand, whose body still wants the bytes that come with the connection."""
    body = b'{"optimizer": "adam", "parameters": [{"name": "w", "shape": [3]}]}'
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head.encode() + body[:10])
        yield connection, body[10:]


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def wait_until_draining(server) -> httpx.Response:
    deadline = time.monotonic() + 5
    while (reply := httpx.get(f"{server.url}/readyz")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return reply


def test_what_is_in_hand_is_answered_and_new_requests_are_sent_elsewhere(start_server, assert_problem):
    server = start_server()
    with half_sent(server) as (connection, rest):
        time.sleep(0.2)
        began = stop(server)
        ready = wait_until_draining(server)
        assert_problem(ready, "shutting down", 503, "draining")
        assert ready.json()["checks"]["requests"] == "shutting down"
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert "optserve_requests_in_hand 2.0" in httpx.get(f"{server.url}/metrics", timeout=60).text
        refused = httpx.post(f"{server.url}/v1/sessions", json={})
        assert_problem(refused, "shutting down", 503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        connection.sendall(rest)
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in reply
    assert seconds_to_end(server, began) < WITHIN


def test_no_client_holds_it_up(start_server):
    """Bodies that never end, a reply that nobody reads, an idle connection, one that says nothing, and impatience."""
    server = start_server()
    with httpx.Client(base_url=f"{server.url}/v1") as http:
        big = http.post("/sessions", json={"optimizer": "adam", "parameters": [{"name": "w", "shape": [2_000_000]}]})
        path = f"/v1/sessions/{big.json()['id']}"
        with half_sent(server) as (slow, _), connect(server) as step, connect(server) as deaf, connect(server):
            head = f"POST {path}/steps/0 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            step.sendall(f"{head}Content-Length: 8000000\r\n\r\n".encode() + bytes(4_000_000))
            deaf.sendall(f"GET {path}/state HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.5)
            began = stop(server)
            wait_until_draining(server)
            stop(server)  # two signals are one
            assert seconds_to_end(server, began) < WITHIN
            replies = [read_all(slow), read_all(step)]
    for reply in replies:
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b"urn:optserve:problem:draining" in reply
        assert b"retry-after: " in reply
    told = [json.loads(line) for line in (server.data_dir.parent / "stderr").read_text().splitlines()]
    assert any(line.get("logger", "").startswith("uvicorn") for line in told)  # in the form of all others


def test_workers_and_event_streams_stop_with_their_server(start_server, tiny_recipe):
    """A worker that is busy gives its run back; a stream of that run ends with a word on why, and when to come back."""
    server = start_server("--workers", "1")
    recipe = {**tiny_recipe, "meta_optimizer": {**tiny_recipe["meta_optimizer"], "outer_steps": 10**6}}
    url = f"{server.url}/v1/meta-training-runs"
    run = httpx.post(url, json=recipe, timeout=60).json()["id"]
    received = []
    with httpx.stream("GET", f"{url}/{run}/metrics", headers={"Accept": "text/event-stream"}, timeout=60) as stream:
        lines = stream.iter_lines()
        received.append(next(lines))  # an outer step is taken
        assert "optserve_workers 1.0" in httpx.get(f"{server.url}/metrics", timeout=60).text
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        began = stop(server)
        received.extend(lines)
    assert ": the server is shutting down" in received
    assert any(line.startswith("retry: ") for line in received)
    assert not any(line.startswith("event: end") for line in received)
    assert seconds_to_end(server, began) < WITHIN
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
    with sqlite3.connect(server.data_dir / "optserve.db") as database:
        assert database.execute("SELECT status FROM meta_training_runs").fetchone() == ("queued",)
    database.close()


def test_a_loop_goes_on_with_the_server_that_takes_its_place(start_server):
    """The address stays: what the old server turns away, and what nobody hears, is answered by the new one."""
    old = start_server()
    gradients = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    taken: list[list[float]] = []
    moving, over = threading.Event(), threading.Event()

    def train(client: Client) -> list[list[float]]:
        session = client.sessions.create("lstm", {"w": (3,)})
        updates = []
        for gradient in gradients:
            updates.append(session.step({"w": gradient})["w"].tolist())
            moving.set()
            time.sleep(0 if over.is_set() else 0.05)
        return updates

    def loop() -> None:
        with Client(old.url) as client:
            taken.append(train(client))

    thread = threading.Thread(target=loop)
    thread.start()
    moving.wait()
    seconds_to_end(old, stop(old))
    over.set()
    new = start_server("--port", str(old.port))
    thread.join(timeout=60)
    with Client(new.url) as client:
        assert taken == [train(client)]
