"""httpx's transport for plain HTTP/1.1, over TCP or a Unix socket, that hardly copies a body.

As it comes, httpx hands every body on in pieces: of ten million numbers it made thousands, and then one copy more of
the whole. Here a reply is read into memory that the caller has ready, its `room`, or else into one piece of its own.
`http.client` reads the replies; timeouts, errors, and connections that are kept alive, are as httpx has them. What is
encrypted, or goes through a proxy, is left to httpx's own transport.
"""

import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

import httpx

ROOM = "optserve.room"
"""The extension of a request that names the memory for the reply's body, a writable memoryview of bytes.

It is used where the reply is a success of exactly that length, and then the reply's only piece *is* that memoryview.
After an error it may hold a part of the body.
"""

Octets: TypeAlias = bytes | bytearray | memoryview

_IDLE_SECONDS = 5.0  # as in httpx; a server is about to close what has been idle for longer


class DirectTransport(httpx.BaseTransport):
    """To one server: its host and port, or the path of its Unix socket. Threads may share it."""

    def __init__(self, where: tuple[str, int] | str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._idle: list[tuple[socket.socket, float]] = []  # each since when; the last used is the last
        self._is_closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, and read the whole reply.

        Raises:
            httpx.TransportError: of the class that httpx's own transport raises.
        """
        timeouts = request.extensions.get("timeout", {})
        connection = self._take() or self._connect(timeouts.get("connect"))
        keep = False
        try:
            connection.settimeout(timeouts.get("write"))
            with contextlib.suppress(httpx.WriteError):  # who refuses a request may not read all of it, but replies
                _send(connection, request)
            connection.settimeout(timeouts.get("read"))
            response, keep = _receive(connection, request)
        finally:
            if keep:
                self._keep(connection)
            else:
                connection.close()
        return response

    def close(self) -> None:
        """Close the connections: those in use as soon as they have their reply."""
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop()[0].close()

    def _take(self) -> socket.socket | None:
        """A connection that was kept, and is still good."""
        with self._lock:
            too_old = time.monotonic() - _IDLE_SECONDS
            while self._idle and self._idle[0][1] < too_old:
                self._idle.pop(0)[0].close()
            while self._idle:
                connection, _ = self._idle.pop()
                if _is_silent(connection):
                    return connection
                connection.close()
        return None

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            if self._is_closed:
                connection.close()
            else:
                self._idle.append((connection, time.monotonic()))

    def _connect(self, timeout: float | None) -> socket.socket:
        with _as_httpx(httpx.ConnectTimeout, httpx.ConnectError):
            if isinstance(self._where, tuple):
                connection = socket.create_connection(self._where, timeout)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(timeout)
                connection.connect(self._where)
            except OSError:
                connection.close()
                raise
            return connection


class _Whole(httpx.SyncByteStream):
    """A body in one piece."""

    def __init__(self, content: Octets) -> None:
        self._content = content

    def __iter__(self) -> Iterator[Octets]:  # type: ignore[override]  # httpx passes it on as it is
        yield self._content


def _is_silent(connection: socket.socket) -> bool:
    """Whether nothing has come, not even the end: then the server waits for a request."""
    connection.settimeout(0)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _send(connection: socket.socket, request: httpx.Request) -> None:
    target, headers = request.url.raw_path, request.headers.raw
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target)]
    lines += [b"%b: %b" % header for header in headers]
    head = b"\r\n".join((*lines, b"", b""))
    if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
        raise httpx.LocalProtocolError("a header, or the address, has a line break in it")
    pieces: Iterator[bytes] = iter(request.stream)  # type: ignore[arg-type]
    first = b"".join((head, next(pieces, b"")))  # in one packet, where the body is small
    with _as_httpx(httpx.WriteTimeout, httpx.WriteError):
        for piece in itertools.chain([first], pieces):
            rest = memoryview(piece)
            while rest:  # not `sendall`, whose timeout is for the whole
                rest = rest[connection.send(rest) :]


def _receive(connection: socket.socket, request: httpx.Request) -> tuple[httpx.Response, bool]:
    """The reply, and whether the connection is good for another request."""
    reply = http.client.HTTPResponse(connection, method=request.method)
    with contextlib.closing(reply), _as_httpx(httpx.ReadTimeout, httpx.ReadError):
        reply.begin()
        content = _read(reply, request.extensions.get(ROOM))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.getheaders()]
    extensions = {"http_version": b"HTTP/1.1", "reason_phrase": reply.reason.encode("latin-1")}
    response = httpx.Response(reply.status, headers=headers, stream=_Whole(content), extensions=extensions)
    return response, not reply.will_close


def _read(reply: http.client.HTTPResponse, room: memoryview | None) -> Octets:
    if reply.length is None:  # in chunks, or until the connection ends
        return reply.read()
    length, is_success = reply.length, 200 <= reply.status < 300
    content = room if room is not None and len(room) == length and is_success else bytearray(length)
    count = reply.readinto(content)
    if count != length:
        raise httpx.RemoteProtocolError(f"the reply ended after {count} of {length} bytes")
    return content


@contextlib.contextmanager
def _as_httpx(on_timeout: type[httpx.TimeoutException], on_failure: type[httpx.NetworkError]) -> Iterator[None]:
    """Raise what httpx raises where a socket, or a reply, goes wrong."""
    try:
        yield
    except TimeoutError as error:
        raise on_timeout(str(error)) from error
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except OSError as error:
        raise on_failure(str(error)) from error
