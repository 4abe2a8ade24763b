"""What is no HTTP at all is answered with a problem too."""

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optserve.wire import problems


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools; a request that cannot be parsed gets `application/problem+json`."""

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and hang up."""
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
