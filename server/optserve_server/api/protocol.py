"""HTTP/1.1 as it comes from the socket: what is none, has no end or does not come is answered with a problem too."""

import asyncio
import json
from http import HTTPStatus

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from optserve.wire import problems
from optserve.wire.problems import ProblemType
from optserve_server import metrics
from optserve_server.api.incoming import RECEIVE_REST, Rest

MAX_HEAD_BYTES = 64 << 10
"""Of a request's line and headers together, and of whatever else comes between two pieces of a body."""

PATIENCE_SECONDS = 10.0
"""How often it is looked whether a request that has begun, or should have, comes on."""

SLOWEST_BYTES_PER_SECOND = 1024
"""Whoever sends less between two looks is cut off, after one time of patience or at most two."""

_TOO_SLOW = (
    f"The request has not come on: send at least {SLOWEST_BYTES_PER_SECOND} bytes a second, or open no connection "
    "before there is something to send."
)
_TOO_LARGE = f"The request's line and headers may have at most {MAX_HEAD_BYTES} bytes together."
_UPGRADE = "A request with a body cannot ask for another protocol; send it without `Connection: Upgrade`."


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, whose refusals are `application/problem+json`.

    Headers end where the body begins: what comes behind a chunked body as a trailer is passed over, so that no proxy
    that checks headers is got round.
    """

    _refused: tuple[ProblemType, str] | None = None  # why the rest of the connection cannot be read
    _in_head = False
    _moved = False  # whether the data just read had a piece of a body, or the end of a head or of a request
    _unmoved_bytes = 0  # received since it last had
    _answered: RequestResponseCycle | None = None  # the request that is being answered

    patience_seconds = PATIENCE_SECONDS
    _messages = 0  # begun
    _in_message = False
    _received_bytes = 0  # since the last look
    _awaited: int | None = None  # the message that was waited for at the last look
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look after the connection."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with it, and with the requests that came together and wait for their turn."""
        if self._looking is not None:
            self._looking.cancel()
        # uvicorn tells only the newest request, and the others would be answered into a closed connection.
        self.pipeline.clear()
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless the connection is given up already."""
        if self._refused is not None:
            return
        self._moved = False
        self._received_bytes += len(data)
        super().data_received(data)
        self._unmoved_bytes = 0 if self._moved else self._unmoved_bytes + len(data)
        if self._unmoved_bytes > MAX_HEAD_BYTES:
            self._give_up(problems.HEADERS_TOO_LARGE, _TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin with a request."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request on, if it is one that can be served."""
        self._in_head, self._moved = False, True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._give_up(problems.HEADERS_TOO_LARGE, _TOO_LARGE)
            raise ValueError(_TOO_LARGE)  # stops the parser
        upgrade = self.parser.should_upgrade()
        if upgrade and self._has_body():
            self._give_up(problems.MALFORMED_BODY, _UPGRADE)
            raise ValueError(_UPGRADE)
        super().on_headers_complete()
        if upgrade:
            self.cycle.keep_alive = False  # what comes next may be of the other protocol
        if any(name == b"content-length" for name, _ in self.headers):
            self.scope["extensions"] = {RECEIVE_REST: self._receive_rest}  # type: ignore[dict-item]  # as in ASGI

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._moved, self._in_message = True, False
        super().on_message_complete()

    async def _receive_rest(self, memory: memoryview) -> bool:
        """See `incoming.ReceiveRest`."""
        cycle = self.cycle

        def received(count: int) -> None:
            self._received_bytes += count
            if not rest.missing:  # the next request begins here, with a parser of its own
                self._hand_over(self)
                self.parser = httptools.HttpRequestParser(self)
                self.on_message_complete()

        rest = Rest(self, memory, received)
        self._hand_over(rest)
        try:
            while rest.missing and not cycle.disconnected:
                await cycle.message_event.wait()
                cycle.message_event.clear()
        finally:
            if rest.missing:
                cycle.keep_alive = False  # the parser does not know how much of the body has come
                self._hand_over(self)
        return not rest.missing

    def _hand_over(self, protocol: asyncio.BaseProtocol) -> None:
        if not self.transport.is_closing():
            self.flow.pause_reading()  # what is read to is decided when reading begins
            self.transport.set_protocol(protocol)
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses."""
        self._give_up(problems.MALFORMED_BODY, f"{msg} It is not HTTP/1.1.")

    def on_response_complete(self) -> None:
        """Go on with the next request of the connection, or refuse what came behind the last."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refused is not None and not self.transport.is_closing():
            self._refuse(*self._refused)

    def _look(self) -> None:
        """Cut off whoever has sent too little since the last look, and was waited for all the time."""
        if self._refused is not None or self.transport.is_closing():
            return
        before, self._awaited = self._awaited, self._messages if self._is_waited_for() else None
        if (
            self._awaited is not None
            and self._awaited == before
            and self._received_bytes < SLOWEST_BYTES_PER_SECOND * self.patience_seconds
        ):
            self._give_up(problems.REQUEST_TOO_SLOW, _TOO_SLOW)
            return
        self._received_bytes = 0
        self._looking = self.loop.call_later(self.patience_seconds, self._look)

    def _is_waited_for(self) -> bool:
        if self.flow.read_paused:  # the server is what is slow
            return False
        is_idle = self.cycle is None or self.cycle.response_complete
        return self._in_message or (is_idle and self.timeout_keep_alive_task is None)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self, problem: ProblemType, detail: str) -> None:
        """Refuse and hang up, once the complete requests before have their replies."""
        if self._refused is not None:
            return
        self._refused = problem, detail
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the request that was cut off; it waits behind complete ones
            return
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self._refuse(problem, detail)

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
            for name, value in self.headers
        )

    def _refuse(self, problem: ProblemType, detail: str) -> None:
        metrics.PROBLEMS.labels(problem.slug).inc()
        content = {"type": problem.urn, "title": problem.title, "status": problem.status, "detail": detail}
        body = json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
