"""What is no HTTP at all is answered with a problem too."""

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optserve.wire import problems


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools; a request that cannot be parsed gets `application/problem+json`."""

    _refused: str | None = None  # why the rest of the connection cannot be read

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and hang up, once the complete requests before have their replies."""
        if self._refused is not None:
            return
        self._refused = msg
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the request that was cut off; it waits behind complete ones
            return
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self._refuse(msg)

    def on_response_complete(self) -> None:
        """Go on with the next request of the connection, or refuse what came behind the last."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refused is not None and not self.transport.is_closing():
            self._refuse(self._refused)

    def _refuse(self, msg: str) -> None:
        problem = problems.MALFORMED_BODY
        body = json.dumps(
            {
                "type": problem.urn,
                "title": problem.title,
                "status": problem.status,
                "detail": f"{msg} It is not HTTP/1.1.",
            }
        ).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
