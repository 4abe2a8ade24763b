"""Where the requests go out: httpx, blocking or awaited, over TCP or a Unix socket."""

import asyncio
import importlib.metadata
import ipaddress
import os
import time
import urllib.request
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from optserve.errors import AddressInvalid, RequestInvalid, Unauthorized
from optserve.exchange import ConnectionLost, Request, Response
from optserve.retries import Retries
from optserve.transport import ROOM, DirectTransport
from optserve.wire import API_PREFIX

URL_VARIABLE, API_KEY_VARIABLE = "OPTSERVE_URL", "OPTSERVE_API_KEY"
"""Of the environment: what a client takes that is told no other."""

DEFAULT_URL = "http://127.0.0.1:8000"

_HTTP_PORT = 80
_CHUNK = 1 << 18  # bytes; httpx copies what it could not send at once, so a large body goes out in pieces
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is: `url` as it was given, the `base` of every request, and the Unix socket if it is one."""

    url: str
    base: str
    socket: str | None = None

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read http://HOST:PORT, https://HOST or unix:///PATH.

        Raises:
            AddressInvalid: none of them.
        """
        parts = _split(url)
        if parts.scheme == "unix" and not parts.netloc and parts.path:
            return cls(url, "http://optserve" + API_PREFIX, parts.path)
        if parts.scheme in ("http", "https") and parts.netloc and not (parts.query or parts.fragment):
            return cls(url, url.rstrip("/") + API_PREFIX)
        raise AddressInvalid(
            f"{url!r} is not a server's address; write http://HOST:PORT, https://HOST or unix:///PATH/TO/SOCKET"
        )

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: then no proxy is asked, whatever HTTP_PROXY says."""
        host = _split(self.url).hostname
        if self.socket or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host or "").is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Options:
    """How a client reaches its server, with the environment's values where none were given."""

    address: Address
    api_key: str | None
    timeout: float
    retries: int

    @classmethod
    def of(cls, url: str | None, api_key: str | None, timeout: float, retries: int) -> "Options":
        """Take `url` from OPTSERVE_URL and `api_key` from OPTSERVE_API_KEY where they are None.

        Raises:
            AddressInvalid: `url` is no address.
            Unauthorized: `api_key` cannot be one.
        """
        url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        api_key = api_key or os.environ.get(API_KEY_VARIABLE) or None
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise Unauthorized("the API key has characters other than printable ASCII; was it copied whole, and alone?")
        return cls(Address.parse(url), api_key, timeout, retries)

    def for_httpx(self) -> dict[str, Any]:
        """The arguments that httpx's blocking and awaited clients share."""
        headers = {"User-Agent": f"optserve/{importlib.metadata.version('optserve')}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return {"headers": headers, "timeout": httpx.Timeout(self.timeout, connect=min(self.timeout, 5.0))}


class Connection:
    """Sends requests and waits. Threads may share it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.retries = Retries(options.retries, options.address.url)
        self._http = httpx.Client(transport=_transport(options.address), **options.for_httpx())
        weakref.finalize(self, self._http.close)  # for those who never close, as RemoteOptimizer's users

    def send(self, request: Request) -> Response:
        """Send once, after the request's delay.

        Raises:
            ConnectionLost: no response.
        """
        if request.delay:
            time.sleep(request.delay)
        outgoing = _outgoing(self._http, self.options.address.base, request)
        try:
            reply = self._http.send(outgoing, stream=True)
            try:
                return _response(reply, list(reply.iter_bytes()), request.room)
            finally:
                reply.close()
                reply.stream = _NOTHING
        except httpx.TransportError as error:
            raise _lost(error) from error

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()


class AsyncConnection:
    """Sends requests and awaits the responses. Tasks of one event loop may share it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.retries = Retries(options.retries, options.address.url)
        transport = httpx.AsyncHTTPTransport(uds=options.address.socket) if options.address.is_local else None
        self._http = httpx.AsyncClient(transport=transport, **options.for_httpx())

    async def send(self, request: Request) -> Response:
        """Send once, after the request's delay.

        Raises:
            ConnectionLost: no response.
        """
        if request.delay:
            await asyncio.sleep(request.delay)
        outgoing = _outgoing(self._http, self.options.address.base, request)
        try:
            reply = await self._http.send(outgoing, stream=True)
            try:
                return _response(reply, [part async for part in reply.aiter_bytes()], request.room)
            finally:
                await reply.aclose()
                reply.stream = _NOTHING
        except httpx.TransportError as error:
            raise _lost(error) from error

    async def close(self) -> None:
        """Close the sockets."""
        await self._http.aclose()


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's bytes in pieces, without a copy of the whole; may be sent again."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content).cast("B") if content else memoryview(b"")

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._content), _CHUNK):
            yield self._content[start : start + _CHUNK]

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self:
            yield piece


_NOTHING = _Body(b"")
"""What is left to read of a reply. Its stream and it hold each other, and with them the gradients and the updates."""


def _split(url: str) -> SplitResult:
    """The parts of a URL, whose port is one.

    Raises:
        AddressInvalid: it cannot be read, or has white space or control characters, which urlsplit drops in silence.
    """
    if not url.isprintable() or (" " in url and not url.startswith("unix:")):
        raise AddressInvalid(f"{url!r} is not a server's address: it has white space or control characters in it")
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here for its check of the range
    except ValueError as error:
        raise AddressInvalid(f"{url!r} is not a server's address: {error}") from error
    return parts


def _transport(address: Address) -> httpx.BaseTransport | None:
    """What takes the requests to the server; None for what httpx makes of the environment's proxies."""
    url = httpx.URL(address.base)
    if url.scheme == "http" and (address.is_local or not {"http", "all"} & urllib.request.getproxies().keys()):
        return DirectTransport(address.socket or (url.raw_host.decode("ascii"), url.port or _HTTP_PORT))
    return httpx.HTTPTransport() if address.is_local else None


def _outgoing(http: httpx.Client | httpx.AsyncClient, base: str, request: Request) -> httpx.Request:
    body = _Body(request.content)
    headers = {"Content-Length": str(len(body)), **(request.headers or {})}
    try:
        extensions = {ROOM: request.room}
        outgoing = http.build_request(request.method, base + request.path, headers=headers, extensions=extensions)
    except httpx.InvalidURL as error:
        raise RequestInvalid(
            f"{request.method} {request.path[:80]}… is no address that can be called ({error}). Where `skip` names "
            "too many parameters, leave those that are not trained out of the session: with a RemoteOptimizer, out "
            "of its parameters, or in a group of their own"
        ) from error
    outgoing.stream = body
    return outgoing


def _response(reply: httpx.Response, parts: list[Any], room: memoryview | None) -> Response:
    """The response whose body has come in these parts: in the room, where it was kept for it."""
    if room is None or not reply.is_success or sum(map(len, parts)) != len(room):
        return Response(reply.status_code, reply.headers, bytearray().join(parts))
    if parts[0] is not room:
        start = 0
        for part in parts:
            room[start : start + len(part)] = part
            start += len(part)
    return Response(reply.status_code, reply.headers, bytearray(), is_in_room=True)


def _lost(error: httpx.TransportError) -> ConnectionLost:
    reason = str(error) or type(error).__name__
    return ConnectionLost(reason, sent=not isinstance(error, _NEVER_SENT))
