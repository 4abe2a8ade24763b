"""The rest of a long body, from the socket to where it belongs with one copy.

HTTP's parser cuts a body up and hands the pieces on, and on their way they are copied four times. What is known to be
body does not have to be parsed: `Rest` takes the connection over until all of it has come.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RECEIVE_REST = "optserve.receive_rest"
"""The extension of a request's scope that is a `ReceiveRest`, where the length of the body is known."""


class ReceiveRest(Protocol):
    """Receives all of the body that has not been received yet."""

    async def __call__(self, memory: memoryview) -> bool:
        """Write it to `memory`, bytes, which is exactly as long; False where it was cut off."""
        ...


class Rest(asyncio.BufferedProtocol):
    """Has the connection in HTTP's place. `missing` is the memory that is still to be written to."""

    def __init__(self, http: HttpToolsProtocol, memory: memoryview, received: Callable[[int], None]) -> None:
        """`received` is told of how many bytes have come each time."""
        self._http = http
        self._received = received
        self.missing = memory

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the socket is to be read to: nothing beyond the body is."""
        return self.missing

    def buffer_updated(self, nbytes: int) -> None:
        """Go on behind what has come."""
        self.missing = self.missing[nbytes:]
        self._received(nbytes)

    def eof_received(self) -> None:
        """Leave it to HTTP."""
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave it to HTTP."""
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        """Leave it to HTTP."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Leave it to HTTP."""
        self._http.resume_writing()
