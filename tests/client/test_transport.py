"""The client's own transport, at a server that answers as a test says: it makes of it what httpx's own would."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from optserve.connection import Address, Connection, Options
from optserve.exchange import ConnectionLost, Request
from optserve.transport import DirectTransport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhello"


class Answering:
    """Reads requests, and answers them one after another; `None` hangs up."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._answers = answers
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._answers:
                connection, _ = self._listening.accept()
                self.connections += 1
                self._open.append(connection)
                while self._answers and self._read(connection):
                    answer = self._answers.pop(0)
                    if answer is not None:
                        connection.sendall(answer)
                    if answer is None or answer == UNTIL_THE_END or b"close" in answer:
                        connection.close()
                        break

    def _read(self, connection: socket.socket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(1 << 16)
            if not data:
                return False
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if length > MOST:
            self.requests.append(head)
            return True
        while len(body) < length:
            body += connection.recv(1 << 20)
        self.requests.append(head + b"\r\n\r\n" + body)
        return True

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join()


MOST = 8 << 20  # of a body; longer ones are answered unread


@pytest.fixture
def answering() -> Iterator[type[Answering]]:
    servers = []

    def start(*answers):
        servers.append(Answering(list(answers)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@contextlib.contextmanager
def connection_to(url: str, timeout: float = 10.0) -> Iterator[Connection]:
    connection = Connection(Options.of(url, None, timeout, 0))
    try:
        yield connection
    finally:
        connection.close()


def ask(room: memoryview | None = None, content: bytes = b"") -> Request:
    return Request("POST", "/x", content, {"X-Name": "value"}, room=room)


@pytest.mark.parametrize("answer", [OK, CHUNKED, UNTIL_THE_END, b"HTTP/1.1 100 Continue\r\n\r\n" + OK])
def test_a_body_is_read_to_the_room_for_it_however_it_comes(answering, answer):
    room = memoryview(bytearray(5))
    with connection_to(answering(answer).url) as connection:
        response = connection.send(ask(room))
    assert response.is_in_room
    assert response.content == b""
    assert bytes(room) == b"hello"


@pytest.mark.parametrize(
    ("answer", "size"), [(OK, 4), (OK, 6), (CHUNKED, 4), (OK.replace(b"200 OK", b"409 Conflict"), 5)]
)
def test_what_does_not_belong_in_the_room_comes_beside_it(answering, answer, size):
    room = memoryview(bytearray(size))
    with connection_to(answering(answer).url) as connection:
        response = connection.send(ask(room))
    assert not response.is_in_room
    assert response.content == b"hello"
    assert bytes(room) == bytes(size)


@pytest.mark.parametrize("size", [0, 5, 300_000, MOST])
def test_a_request_arrives_as_it_was_sent(answering, size):
    server = answering(OK)
    content = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    with connection_to(server.url) as connection:
        connection.send(ask(content=memoryview(content)))
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Name: value" in head
    assert f"\r\nContent-Length: {size}".encode() in head
    assert body == content


def test_a_connection_is_used_again_until_the_server_has_closed_it(answering):
    server = answering(OK, CHUNKED, OK, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", OK)
    with connection_to(server.url) as connection:
        for expected in (1, 1, 1, 1, 2):
            connection.send(ask())
            assert server.connections == expected


def test_a_connection_that_the_server_has_closed_meanwhile_is_noticed_before_it_is_used(answering):
    server = answering(OK, OK)
    with connection_to(server.url) as connection:
        connection.send(ask())
        server._open[0].shutdown(socket.SHUT_RDWR)
        connection.send(ask())
    assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_used_again(answering, monkeypatch):
    server = answering(OK, OK)
    with connection_to(server.url) as connection:
        connection.send(ask())
        real = time.monotonic
        monkeypatch.setattr("optserve.transport.time.monotonic", lambda: real() + 6)
        server._open[0].shutdown(socket.SHUT_RD)  # lets the server go on to the next
        connection.send(ask())
    assert server.connections == 2


def test_the_reply_of_a_server_that_refuses_the_body_unread_is_heard(answering):
    refusal = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge"
    with connection_to(answering(refusal).url) as connection:
        assert connection.send(ask(content=bytes(4 * MOST))).status == 413


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([None], httpx.RemoteProtocolError),
        ([OK[:-1]], httpx.ReadTimeout),
        ([b"hello\r\n\r\n"], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nhello"], httpx.RemoteProtocolError),
        ([CHUNKED[:-9] + b"x\r\n\r\n"], httpx.RemoteProtocolError),
    ],
)
def test_a_reply_that_does_not_come_whole_is_a_lost_connection(answering, answers, kind):
    with (
        connection_to(answering(*answers).url, timeout=0.5) as connection,
        pytest.raises(ConnectionLost) as raised,
    ):
        connection.send(ask(memoryview(bytearray(6))))
    assert type(raised.value.__cause__) is kind
    assert raised.value.sent


def test_a_server_that_does_not_take_the_request_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # its queue takes the connection, and nobody reads
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with connection_to(url, timeout=0.3) as connection, pytest.raises(ConnectionLost) as raised:
            connection.send(ask(content=bytes(32 << 20)))
    assert type(raised.value.__cause__) is httpx.WriteTimeout


def test_where_nobody_listens_nothing_was_sent(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", f"unix://{tmp_path}/none"):
        with connection_to(url) as connection, pytest.raises(ConnectionLost) as raised:
            connection.send(ask())
        assert type(raised.value.__cause__) is httpx.ConnectError
        assert not raised.value.sent


def test_a_line_break_in_a_header_goes_nowhere(answering):
    server = answering(OK)
    with connection_to(server.url) as connection, pytest.raises(ConnectionLost, match="line break"):
        connection.send(Request("POST", "/x", headers={"X-Name": "value\r\nX-Other: value"}))
    assert server.requests == []


def test_threads_share_it_each_with_a_connection(answering, client):
    address = Address.parse(client.url)
    with connection_to(address.url) as connection:
        replies = []

        def many() -> None:
            replies.extend(connection.send(Request("GET", "/optimizers")).content for _ in range(20))

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(replies) == 80
    assert len(set(map(bytes, replies))) == 1


@pytest.mark.parametrize(
    ("url", "proxies", "is_direct"),
    [
        ("http://127.0.0.1:1", {"HTTP_PROXY": "http://proxy:1"}, True),
        ("unix:///s", {"ALL_PROXY": "http://proxy:1"}, True),
        ("http://elsewhere:1", {}, True),
        ("http://elsewhere:1", {"HTTPS_PROXY": "http://proxy:1"}, True),
        ("http://elsewhere:1", {"HTTP_PROXY": "http://proxy:1"}, False),
        ("http://elsewhere:1", {"ALL_PROXY": "http://proxy:1"}, False),
        ("https://elsewhere:1", {}, False),
        ("https://localhost:1", {}, False),
    ],
)
def test_what_is_encrypted_or_goes_through_a_proxy_is_left_to_httpx(monkeypatch, url, proxies, is_direct):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    with connection_to(url) as connection:
        assert isinstance(connection._http._transport, DirectTransport) == is_direct


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_the_room_is_filled_by_httpxs_own_transport_too(answering, answer, monkeypatch):
    room = memoryview(bytearray(5))
    monkeypatch.setattr("optserve.connection._transport", lambda address: httpx.HTTPTransport())
    with connection_to(answering(answer).url) as connection:
        assert connection.send(ask(room)).is_in_room
    assert bytes(room) == b"hello"
