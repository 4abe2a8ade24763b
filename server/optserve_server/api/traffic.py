"""All requests, before anything else sees them: each gets an id, is counted and logged, and is refused in a drain.

A drain is the end of a server that others are to take the place of. Requests in hand are answered, new ones are told to
come back, and those that nothing more is heard of are cut off.
"""

import asyncio
import functools
import itertools
import re
import secrets
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import Counter
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optserve.wire import API_PREFIX, HEADER_REQUEST_ID, problems
from optserve_server import logs, metrics
from optserve_server.api.problems import response, unexpected

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 5
"""When whoever is turned away in a drain is to come back: another server, or this one again, takes some seconds."""

SLOW_SECONDS = 1.0
"""A request that takes longer is logged, whatever it is."""

UNROUTED = "-"
"""The route of requests that had none: nothing is there, or no key let them in."""

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered in a drain too, and not logged."""

_STEP_ROUTE = f"{API_PREFIX}/sessions/{{session_id}}/steps/{{step}}"
_QUIET = PROBES | {_STEP_ROUTE}
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_SESSION_PATH = re.compile(rf"{API_PREFIX}/sessions/([0-9a-f]{{32}})(?:/|$)")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_ID_HEADER = HEADER_REQUEST_ID.lower().encode()
_ID_PREFIX, _ID_NUMBERS = secrets.token_hex(4), itertools.count(1)


def below_root(scope: Scope) -> str:
    """The path that the routes see: where the application is mounted somewhere, without that."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class Drain:
    """The requests in hand, and whether new ones are taken. To be used on the event loop."""

    def __init__(self) -> None:
        self.draining = False
        self.in_hand: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Take no more requests. Safe in a signal's handler."""
        self.draining = True

    async def wait(self, seconds: float) -> None:
        """Let the requests in hand be answered, but cut those off that take longer than `seconds`."""
        tasks = self.in_hand - {asyncio.current_task()}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel("drain")
        if late:
            log.warning("requests are cut off", count=len(late))
            await asyncio.wait(late, timeout=1.0)


class Traffic:
    """The middleware. It stands outermost, so that every reply passes here, those to unexpected errors too."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        reply = _Reply(send, _request_id(scope["headers"]), self._drain)
        logs.REQUEST.set(_common(reply.request_id, scope["path"]))
        self._drain.in_hand.add(task)
        try:
            await self._serve(scope, receive, reply)
        finally:
            self._drain.in_hand.discard(task)
            _tell(scope, reply.status, perf_counter() - began)

    async def _serve(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        if self._drain.draining and below_root(scope) not in PROBES:
            await _refusal()(scope, receive, reply.send)
            return
        try:
            await self._app(scope, receive, reply.send)
        except asyncio.CancelledError:
            if not self._drain.draining or reply.status:
                raise
            await _refusal()(scope, receive, reply.send)
        except Exception as error:
            if reply.status:
                raise
            await unexpected(scope, error)(scope, receive, reply.send)


class _Reply:
    """The reply to one request: gets the request's id on its way, and in a drain is the connection's last."""

    __slots__ = ("_drain", "_send", "request_id", "status")

    def __init__(self, send: Send, request_id: str, drain: Drain) -> None:
        self._send = send
        self._drain = drain
        self.request_id = request_id
        self.status = 0  # none yet

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (_ID_HEADER, self.request_id.encode())]
            if self._drain.draining:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one that whoever sends the request gave it, or a new one."""
    for name, value in headers:
        if name == _ID_HEADER and _SANE_ID.fullmatch(value):
            return value.decode()
        if name == b"traceparent" and (trace := _TRACEPARENT.fullmatch(value)):
            return trace[1].decode()
    return f"{_ID_PREFIX}{next(_ID_NUMBERS):08x}"


def _common(request_id: str, path: str) -> dict[str, str]:
    session = _SESSION_PATH.search(path)
    return {"request_id": request_id, "session_id": session[1]} if session else {"request_id": request_id}


def _refusal() -> Response:
    detail = (
        "The server is shutting down. Send the request again in some seconds: here, or to whatever takes its place."
    )
    return response(problems.DRAINING, detail, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def _tell(scope: Scope, status: int, seconds: float) -> None:
    route = _route(scope)
    method = scope["method"] if scope["method"] in _METHODS else "other"
    _counter(method, route, status).inc()
    if route in _QUIET and 0 < status < 400 and seconds < SLOW_SECONDS:
        return
    caller = scope.get("state", {}).get("caller")
    write = log.warning if status >= 500 else log.info
    write(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        seconds=round(seconds, 4),
        **({} if caller is None else {"caller": caller.name}),
    )


@functools.cache
def _counter(method: str, route: str, status: int) -> Counter:
    return metrics.REQUESTS.labels(method, route, str(status))


def _route(scope: Scope) -> str:
    """The template of the path that the framework has found."""
    # FastAPI keeps what it included a router with apart from the router's own routes, in newer versions.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    path: str = getattr(route, "path", UNROUTED)
    return path
