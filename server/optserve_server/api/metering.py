"""Every request of a key, against the key's limits, and into its account.

It stands behind the authorisation and before the routing. There is neither SQL nor a lock on this way.
"""

import math
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optserve.wire import problems
from optserve.wire.limits import Limits
from optserve_server.api.accounts import Account, Accounts, capacity
from optserve_server.api.authorisation import METRICS_READER
from optserve_server.api.key_ring import Caller
from optserve_server.api.problems import Problem, response

HEADER_POLICY, HEADER_STATE = "RateLimit-Policy", "RateLimit"
"""As in the IETF's draft-ietf-httpapi-ratelimit-headers."""

BUSY_SECONDS = 1
"""When whoever had no room for a body is to come back."""


class BodyMemory:
    """The bytes of all requests' bodies that are not answered yet, or are still to come. Used on the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def hold(self, count: int) -> None:
        """Count `count` bytes more. A body that is alone may be longer than the limit, or it would never get in.

        Raises:
            Problem: there is no room for them now.
        """
        if self.used and self.used + count > self.limit:
            raise Problem(
                problems.SERVER_BUSY,
                f"The server holds {self.used} bytes of other requests' bodies and has no room for {count} more, for "
                f"it takes {self.limit} at once. Send the request again in {BUSY_SECONDS} s; whoever runs the server "
                "can give it more: `body_memory`.",
                {"Retry-After": str(BUSY_SECONDS)},
                bytes_needed=count,
                bytes_free=max(0, self.limit - self.used),
            )
        self.used += count

    def release(self, count: int) -> None:
        """Count `count` bytes less."""
        self.used -= count


class Metering:
    """The middleware."""

    def __init__(self, app: ASGIApp, accounts: Accounts, bodies: BodyMemory) -> None:
        self._app = app
        self._accounts = accounts
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        caller: Caller | None = scope.get("state", {}).get("caller")
        if caller is None or caller is METRICS_READER:
            await self._app(scope, receive, send)
            return
        account = self._accounts.of(caller.name)
        account.requests += 1
        scope["state"]["account"] = account
        metered = _Metered(caller, account, self._bodies, receive, send)
        try:
            try:
                metered.take_turn()
                incoming = metered.announce(scope["headers"])
            except Problem as refused:
                reply = response(refused.problem, refused.detail, refused.headers, **refused.fields)
                await reply(scope, receive, metered.send)
            else:
                await self._app(scope, incoming, metered.send)
        finally:
            metered.release()


class _Metered:
    """One request, as it is counted."""

    __slots__ = ("_account", "_bodies", "_held", "_limits", "_name", "_receive", "_received", "_send")

    def __init__(self, caller: Caller, account: Account, bodies: BodyMemory, receive: Receive, send: Send) -> None:
        self._name = caller.name
        self._limits = caller.limits
        self._account = account
        self._bodies = bodies
        self._receive = receive
        self._send = send
        self._held = 0
        self._received = 0

    def take_turn(self) -> None:
        """Count the request itself.

        Raises:
            Problem: requests come too fast.
        """
        rate = self._limits.requests_per_second
        if rate is None:
            return
        wait = self._account.bucket.take(rate)
        if wait:
            seconds = max(1, math.ceil(wait))
            raise _exceeded(
                self._name,
                "requests_per_second",
                rate,
                f"may send {rate:g} requests a second. Send this one again in {seconds} s.",
                {"Retry-After": str(seconds)},
            )

    def announce(self, headers: list[tuple[bytes, bytes]]) -> Receive:
        """Hold the bytes that the request announces; what to receive the body with.

        Raises:
            Problem: the key, or the whole server, has too many in flight.
        """
        for name, value in headers:
            if name == b"content-length":  # the server underneath sees to it that it is one, and true
                self._hold(int(value))
                self._account.bytes_received += self._held
                return self._receive
        return self.receive

    def _hold(self, count: int) -> None:
        limit, used = self._limits.bytes_in_flight, self._account.bytes_in_flight
        if limit is not None and used + count > limit:
            passing = used > self._held and self._held + count <= limit
            raise _exceeded(
                self._name,
                "bytes_in_flight",
                limit,
                f"has {used} bytes of bodies in flight, and may have {limit}. "
                + ("Wait for replies, then send this one again." if passing else "This body alone is too long for it."),
                {"Retry-After": str(BUSY_SECONDS)} if passing else {},
                used=used,
            )
        self._bodies.hold(count)
        self._account.bytes_in_flight += count
        self._held += count

    def release(self) -> None:
        """Let the bytes go; the request is answered."""
        self._account.bytes_in_flight -= self._held
        self._bodies.release(self._held)

    async def receive(self) -> Message:
        """Receive a body whose length nobody has announced.

        Raises:
            Problem: there are too many bytes in flight now.
        """
        message = await self._receive()
        count = len(message.get("body", b""))
        self._hold(count)
        self._account.bytes_received += count
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the reply."""
        if message["type"] == "http.response.body":
            self._account.bytes_sent += len(message.get("body", b""))
        elif self._limits.requests_per_second is not None and message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_rate_limit(self._limits, self._account)]
        await self._send(message)


def _rate_limit(limits: Limits, account: Account) -> list[tuple[bytes, bytes]]:
    rate = limits.requests_per_second or 1.0
    quota, window = int(capacity(rate)), math.ceil(max(1.0, 1 / rate))
    remaining = int(min(account.bucket.tokens, quota))
    reset = math.ceil((quota - remaining) / rate)
    return [
        (HEADER_POLICY.lower().encode(), f'"requests";q={quota};w={window}'.encode()),
        (HEADER_STATE.lower().encode(), f'"requests";r={remaining};t={reset}'.encode()),
    ]


def _exceeded(
    key: str, limit: str, at_most: float, what: str, headers: dict[str, str] | None = None, **fields: Any
) -> Problem:
    detail = f"The API key {key!r} {what}"
    return Problem(problems.QUOTA_EXCEEDED, detail, headers, limit=limit, at_most=at_most, **fields)
