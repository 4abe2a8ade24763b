"""Where the requests go out: httpx, blocking or awaited, over TCP or a Unix socket."""

import asyncio
import importlib.metadata
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from optserve.errors import AddressInvalid
from optserve.exchange import ConnectionLost, Request, Response
from optserve.retries import Retries
from optserve.wire import API_PREFIX

DEFAULT_URL = "http://127.0.0.1:8000"

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
        parts = urlsplit(url)
        if parts.scheme == "unix" and not parts.netloc and parts.path:
            return cls(url, "http://optserve" + API_PREFIX, parts.path)
        if parts.scheme in ("http", "https") and parts.netloc and not (parts.query or parts.fragment):
            return cls(url, url.rstrip("/") + API_PREFIX)
        raise AddressInvalid(
            f"{url!r} is not a server's address; write http://HOST:PORT, https://HOST or unix:///PATH/TO/SOCKET"
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How a client reaches its server, with the environment's values where none were given."""

    address: Address
    api_key: str | None
    timeout: float
    retries: int

    @classmethod
    def of(cls, url: str | None, api_key: str | None, timeout: float, retries: int) -> "Options":
        """Take `url` from OPTSERVE_URL and `api_key` from OPTSERVE_API_KEY where they are None."""
        url = url or os.environ.get("OPTSERVE_URL") or DEFAULT_URL
        return cls(Address.parse(url), api_key or os.environ.get("OPTSERVE_API_KEY") or None, timeout, retries)

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
        transport = httpx.HTTPTransport(uds=options.address.socket) if options.address.socket else None
        self._http = httpx.Client(transport=transport, **options.for_httpx())
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
                return Response(reply.status_code, reply.headers, bytearray().join(reply.iter_bytes()))
            finally:
                reply.close()
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
        transport = httpx.AsyncHTTPTransport(uds=options.address.socket) if options.address.socket else None
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
                return Response(
                    reply.status_code, reply.headers, bytearray().join([part async for part in reply.aiter_bytes()])
                )
            finally:
                await reply.aclose()
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


def _outgoing(http: httpx.Client | httpx.AsyncClient, base: str, request: Request) -> httpx.Request:
    body = _Body(request.content)
    headers = {"Content-Length": str(len(body)), **(request.headers or {})}
    outgoing = http.build_request(request.method, base + request.path, headers=headers)
    outgoing.stream = body
    return outgoing


def _lost(error: httpx.TransportError) -> ConnectionLost:
    reason = str(error) or type(error).__name__
    return ConnectionLost(reason, sent=not isinstance(error, _NEVER_SENT))
