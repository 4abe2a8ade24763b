"""Requests that bend HTTP itself: each has one answer, and none reaches a session by a way round the checks."""

import socket
from contextlib import suppress

import httpx
import pytest
from structlog.testing import capture_logs

from optserve_server.api.protocol import MAX_HEAD_BYTES
from optserve_server.sessions.store import SessionStore
from optserve_server.settings import Settings

BODY = bytes(8)
LENGTH = b"Content-Length: 8"
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture
def loop(new_loop):
    """A session of two coordinates, at its first step."""
    return new_loop("adam", {"w": (2,)})


@pytest.fixture
def exchange(server):
    """Sends bytes on a connection of its own, and gives all that comes back until the server hangs up."""

    def send(*pieces):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            received = b""
            with suppress(ConnectionError):  # the server may hang up on what it has not read
                for piece in pieces:
                    connection.sendall(piece)
            with suppress(ConnectionError):
                while data := connection.recv(1 << 16):
                    received += data
            return received

    return send


def step(loop, *headers, body=BODY, method=b"POST"):
    lines = [
        method + f" /v1{loop.path}/steps/0 HTTP/1.1".encode(),
        b"Host: test",
        b"Content-Type: application/octet-stream",
        *headers,
    ]
    return b"\r\n".join([*lines, b"", b""]) + body


def statuses(reply):
    return [int(one[:3]) for one in reply.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "headers",
    [
        (LENGTH, CHUNKED),
        (CHUNKED, LENGTH),
        (LENGTH, LENGTH),
        (LENGTH, b"Content-Length: 9"),
        (b"Content-Length: +8",),
        (b"Content-Length: 8, 8",),
        (b"Content-Length : 8",),
        (b"Content-Length: 99999999999999999999999",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: chunked, identity",),
        (b"X: a\0b", LENGTH),
        (b"X: folded\r\n line", LENGTH),
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_read_in_none(exchange, loop, headers):
    smuggled = step(loop, LENGTH, b"Connection: close")
    reply = exchange(step(loop, *headers) + smuggled)
    assert statuses(reply) == [400]
    assert b"application/problem+json" in reply
    assert loop.get()["next_step"] == 0


@pytest.mark.parametrize("size", [b"f" * 17, b"-8", b"8 ", b"0x8", b"", b"g"])
def test_a_chunk_whose_size_is_none(exchange, loop, size):
    reply = exchange(step(loop, CHUNKED, body=size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"))
    assert statuses(reply) == [400]
    assert loop.get()["next_step"] == 0


def test_chunks_may_have_extensions_and_trailers_which_change_nothing(exchange, loop):
    body = b'8;name=value;other="x"\r\n' + BODY + b"\r\n0\r\nContent-Type: text/csv\r\nConnection: close\r\n\r\n"
    assert statuses(exchange(step(loop, CHUNKED, b"Connection: close", body=body))) == [200]


def test_a_trailer_is_no_header(exchange, loop):
    """Otherwise it would pass every check that a proxy makes of headers."""
    chunked = b"8\r\n" + BODY + b"\r\n0\r\nContent-Type: application/octet-stream\r\n\r\n"
    request = step(loop, CHUNKED, b"Connection: close", body=chunked)
    request = request.replace(b"Content-Type: application/octet-stream\r\n", b"", 1)
    assert statuses(exchange(request)) == [415]


@pytest.mark.parametrize(
    "headers", [(b"Content-Encoding: gzip",), (b"Content-Encoding: br, gzip",), (b"Transfer-Encoding: gzip, chunked",)]
)
def test_a_coded_body_is_refused_unread(exchange, loop, headers):
    lengths = () if headers[0].startswith(b"Transfer") else (b"Content-Length: 1000000000",)
    reply = exchange(step(loop, *headers, *lengths, b"Connection: close", body=b""))
    assert statuses(reply) == [415]
    assert b"accept-encoding: identity" in reply.lower()
    assert b"unsupported-media-type" in reply
    assert loop.get()["next_step"] == 0


@pytest.mark.parametrize(
    ("method", "path", "media_type"),
    [
        ("POST", "/sessions", "application/json"),
        ("POST", "/sessions/{id}/steps/0", "application/json"),
        ("POST", "/sessions/{id}/steps/0", "application/x-safetensors"),
        ("PUT", "/sessions/{id}/state", "application/x-safetensors"),
        ("PUT", "/sessions/{id}/parameters", "application/octet-stream"),
        ("POST", "/optimizers/new/versions", "application/x-safetensors"),
        ("POST", "/meta-training-runs", "application/json"),
        ("POST", "/evaluations", "application/json"),
    ],
)
def test_no_route_takes_compressed_bodies(http, loop, assert_problem, method, path, media_type):
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    reply = http.request(method, path.format(id=loop.info["id"]), content=b"\x1f\x8b", headers=headers)
    assert_problem(reply, "Content-Encoding", 415, "unsupported-media-type")


def test_a_body_coded_as_itself_is_a_body(http, loop):
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "identity"}
    assert http.post(f"{loop.path}/steps/0", content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n",
    ],
    ids=["line", "header", "headers"],
)
@pytest.mark.parametrize("pieces", [1, 50])
def test_a_head_that_is_too_long_is_refused(exchange, head, pieces):
    size = -(-len(head) // pieces)
    reply = exchange(*(head[start : start + size] for start in range(0, len(head), size)))
    assert statuses(reply) == [431]
    assert b"urn:optserve:problem:headers-too-large" in reply
    assert b"application/problem+json" in reply


def assert_hung_up(connection, filling):
    """The server does not read on for ever."""
    with pytest.raises(ConnectionError):
        for _ in range(64 * MAX_HEAD_BYTES // len(filling)):
            connection.sendall(filling)


@pytest.mark.parametrize(
    "endless",
    [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX", b"\r\n\r\n"],
    ids=["line", "value", "name", "empty lines"],
)
def test_a_head_without_end_is_refused_as_soon_as_it_is_too_long(server, endless):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(endless)
        filling = b"\r\n" * 2048 if endless.startswith(b"\r") else b"a" * 4096
        assert_hung_up(connection, filling)


@pytest.mark.parametrize("endless", [b"8;", b"8\r\n" + BODY + b"\r\n0\r\nX: "], ids=["extension", "trailer"])
def test_what_a_chunk_has_beside_it_is_not_endless_either(server, loop, endless):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(step(loop, CHUNKED, body=endless))
        assert_hung_up(connection, b"a" * 4096)
    assert loop.get()["next_step"] == 0


def test_another_protocol_is_not_offered_and_no_body_is_lost_by_asking(exchange, loop):
    asking = (b"Connection: Upgrade", b"Upgrade: h2c")
    for request in (step(loop, *asking, LENGTH), step(loop, *asking, CHUNKED, body=b"8\r\n" + BODY + b"\r\n0\r\n\r\n")):
        reply = exchange(request)
        assert statuses(reply) == [400]
        assert b"Upgrade" in reply
    assert loop.get()["next_step"] == 0
    reply = exchange(b"GET /healthz HTTP/1.1\r\nHost: test\r\n" + b"\r\n".join(asking) + b"\r\n\r\n")
    assert statuses(reply) == [200]  # and the server hangs up: what follows it could not be read


@pytest.mark.parametrize(
    "request_",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        b"GET /v1/sessions HTTP/9.9\r\n\r\n",
        b"BREW /v1/sessions HTTP/1.1\r\n\r\n",
        b"GET /v1/sessions HTTP/1.1\nHost: test\n\n",
        b"GET /v1/\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
    ],
)
def test_what_is_not_our_protocol_is_refused(exchange, request_):
    reply = exchange(request_)
    assert [status for status in statuses(reply) if not 400 <= status < 500] == []
    assert statuses(reply), reply


def test_a_failure_is_logged_once_and_answered_with_where_to_find_it(serving, tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(SessionStore, "after", fail)
    with capture_logs() as log, serving(Settings(data_dir=tmp_path, workers=0)) as url:
        reply = httpx.get(f"{url}/v1/sessions", timeout=30)
    assert reply.status_code == 500
    problem = reply.json()
    assert problem["type"] == "urn:optserve:problem:internal-error"
    [logged] = [line for line in log if line["log_level"] == "error"]
    assert logged["error_id"] == problem["error_id"]
    assert str(logged["exc_info"]) == "nobody foresaw this"
    assert "foresaw" not in "".join(capfd.readouterr())  # uvicorn would log it again
