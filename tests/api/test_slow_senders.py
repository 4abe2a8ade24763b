"""Who sends too slowly is cut off; who waits for the server is not."""

import socket
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from optserve_server.api.protocol import SLOWEST_BYTES_PER_SECOND, Protocol
from optserve_server.settings import Settings

POST = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Impatient(Protocol):
    patience_seconds = 0.6


@pytest.fixture(scope="module")
def url(serving, tmp_path_factory):
    with serving(Settings(data_dir=tmp_path_factory.mktemp("slow")), Impatient) as url:
        yield url


@contextmanager
def connected(url):
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        yield connection


def everything(connection):
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\n",
        POST % 100 + b"{",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
        POST.replace(b"/v1/sessions", b"/v1/nothing") % 100 + b"{",  # whose reply does not wait for the body
    ],
)
def test_a_request_that_stops_half_way_is_cut_off(url, sent):
    with connected(url) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        reply = everything(connection)
        assert time.monotonic() - began < 5
    last = reply[reply.rindex(b"HTTP/1.1 ") :]
    assert last.startswith((b"HTTP/1.1 408 Request Timeout\r\n", b"HTTP/1.1 404")), reply
    assert b"application/problem+json" in last


def test_drops_are_not_enough(url):
    with connected(url) as connection:
        connection.sendall(POST % 100_000)
        connection.settimeout(0.02)
        for _ in range(200):
            try:
                reply = connection.recv(1 << 16)
            except TimeoutError:
                connection.sendall(b" ")
            else:
                break
    assert b"urn:optserve:problem:request-too-slow" in reply
    assert httpx.get(f"{url}/v1/usage").json()["bytes_in_flight"] == 0


def test_slow_but_steady_is_served(url):
    pieces = 18
    with connected(url) as connection:
        connection.sendall(POST % (pieces * 2 * SLOWEST_BYTES_PER_SECOND))
        for _ in range(pieces):
            time.sleep(0.1)
            connection.sendall(b" " * 2 * SLOWEST_BYTES_PER_SECOND)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")  # for it is no JSON


def test_who_waits_for_the_server_is_not_cut_off(url, tiny_recipe):
    run = httpx.post(f"{url}/v1/meta-training-runs", json=tiny_recipe, timeout=60).json()
    path = f"/v1/meta-training-runs/{run['id']}"
    with connected(url) as connection:
        connection.sendall(f"GET {path}/metrics HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        time.sleep(3 * Impatient.patience_seconds)
        httpx.post(f"{url}{path}/cancel")
        told = b""
        while b"event: end" not in told:
            data = connection.recv(1 << 16)
            assert data, told
            told += data
