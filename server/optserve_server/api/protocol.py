"""HTTP/1.1 as it comes from the socket: what is none, or has no end, is answered with a problem too."""

import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optserve.wire import problems
from optserve.wire.problems import ProblemType

MAX_HEAD_BYTES = 64 << 10
"""Of a request's line and headers together, and of whatever else comes between two pieces of a body."""

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

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless the connection is given up already."""
        if self._refused is not None:
            return
        self._moved = False
        super().data_received(data)
        self._unmoved_bytes = 0 if self._moved else self._unmoved_bytes + len(data)
        if self._unmoved_bytes > MAX_HEAD_BYTES:
            self._give_up(problems.HEADERS_TOO_LARGE, _TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin with a request."""
        super().on_message_begin()
        self._in_head = True

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

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._moved = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses."""
        self._give_up(problems.MALFORMED_BODY, f"{msg} It is not HTTP/1.1.")

    def on_response_complete(self) -> None:
        """Go on with the next request of the connection, or refuse what came behind the last."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refused is not None and not self.transport.is_closing():
            self._refuse(*self._refused)

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
