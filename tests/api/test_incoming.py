"""A long body of numbers is read past HTTP's parser, and nobody can tell: who sends slowly, in pieces, or stops."""

import socket
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from optserve_server.api.protocol import Protocol
from optserve_server.settings import Settings

COORDINATES = 500_000
BYTES = 4 * COORDINATES


class Watched(Protocol):
    patience_seconds = 1.0
    parsed = 0

    def on_body(self, body):
        Watched.parsed += len(body)
        super().on_body(body)


@pytest.fixture(scope="module")
def url(serving, tmp_path_factory):
    with serving(Settings(data_dir=tmp_path_factory.mktemp("incoming")), Watched) as url:
        yield url


@pytest.fixture
def path(url):
    wanted = {"optimizer": "sgd", "hyperparameters": {"lr": 1}, "parameters": [{"name": "w", "shape": [COORDINATES]}]}
    session = httpx.post(f"{url}/v1/sessions", json=wanted, timeout=30).json()["id"]
    yield f"/v1/sessions/{session}"
    httpx.delete(f"{url}/v1/sessions/{session}")


@contextmanager
def connected(url):
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        yield connection


def gradients(number):
    return np.random.default_rng(number).normal(size=COORDINATES).astype("<f4")


def request(path, step, body):
    head = f"POST {path}/steps/{step} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def reply(connection):
    """The head and the body of the next reply."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head, body


def next_step(url, path):
    return httpx.get(url + path).json()["next_step"]


def test_most_of_a_long_body_never_meets_the_parser(url, path):
    Watched.parsed = 0
    with connected(url) as connection:
        for step in range(3):
            connection.sendall(request(path, step, gradients(step).tobytes()))
            assert reply(connection)[1] == (-gradients(step)).tobytes()
    assert Watched.parsed < 3 * BYTES / 2


@pytest.mark.parametrize("piece", [1 << 14, 100_003])
def test_requests_in_any_pieces_are_the_same_requests(url, path, piece):
    sent = b"".join(request(path, step, gradients(step).tobytes()) for step in range(2))
    sent += f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with connected(url) as connection:
        connection.settimeout(20)
        for start in range(0, len(sent), piece):
            connection.sendall(sent[start : start + piece])
        for step in range(2):
            assert reply(connection)[1] == (-gradients(step)).tobytes()
        assert b'"next_step":2' in reply(connection)[1]


def test_a_body_that_is_cut_off_changes_nothing(url, path):
    for there in (BYTES // 2, BYTES - 1):
        with connected(url) as connection:
            connection.sendall(request(path, 0, gradients(0).tobytes())[: there - BYTES])
    assert next_step(url, path) == 0
    with connected(url) as connection:
        connection.sendall(request(path, 0, gradients(0).tobytes()))
        assert reply(connection)[1] == (-gradients(0)).tobytes()
    assert httpx.get(f"{url}/v1/usage").json()["bytes_in_flight"] == 0


def test_a_body_that_does_not_come_on_is_given_up_and_a_slow_one_is_not(url, path):
    sent = request(path, 0, gradients(0).tobytes())
    with connected(url) as connection:
        connection.sendall(sent[: BYTES // 2])
        assert reply(connection)[0].startswith(b"HTTP/1.1 408")
        assert connection.recv(1) == b""
    slowly = 8
    with connected(url) as connection:
        connection.sendall(sent[: BYTES // 2])
        for start in range(slowly):
            time.sleep(Watched.patience_seconds / 3)
            share = (len(sent) - BYTES // 2) // slowly + 1
            connection.sendall(sent[BYTES // 2 + start * share :][:share])
        assert reply(connection)[1] == (-gradients(0)).tobytes()
