"""How the bodies of requests are read."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from optserve.wire import problems
from optserve.wire.gradients import JSON, OCTET_STREAM, SAFETENSORS
from optserve_server.api import forms, json_form
from optserve_server.api.incoming import RECEIVE_REST, ReceiveRest
from optserve_server.api.problems import Problem, pointer
from optserve_server.api.targets import Target
from optserve_server.naming import shown
from optserve_server.sessions.layout import MAX_DIMENSIONS, MAX_PARAMETERS

MAX_JSON_BYTES = 4 << 20  # of a body that does not carry numbers by the million
MAX_JSON_COMMAS = MAX_PARAMETERS * (MAX_DIMENSIONS + 2)  # of the longest list of parameters, and what stands beside it

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PlainRoute(APIRoute):
    """A route whose function takes the request and returns the response, without the framework's dependencies."""

    def get_route_handler(self) -> Handler:
        """The function itself."""
        handler: Handler = self.endpoint
        return handler


class _JsonRequest(Request):
    """A request whose body must be JSON of a reasonable length."""

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Problem: of another media type, or too long.
        """
        if not hasattr(self, "_body"):
            self._body = await read_body(self, MAX_JSON_BYTES)
            if self._body:
                self._require_json()
        return self._body

    async def json(self) -> Any:
        """The body as Python has it; what has more members than any request is refused before each is looked at.

        Raises:
            Problem: too many members.
        """
        data = await self.body()
        if data.count(b",") > MAX_JSON_COMMAS:
            raise Problem(problems.REQUEST_INVALID, "The body has more members than any request of this server.")
        parsed = json.loads(data)
        for name, value in parsed.items() if isinstance(parsed, dict) else ():
            if isinstance(value, list) and len(value) > MAX_PARAMETERS:
                detail = f"{shown(name)} is a list of {len(value)}, but may have at most {MAX_PARAMETERS} items."
                errors = [{"pointer": pointer(name), "detail": detail}]
                raise Problem(problems.REQUEST_INVALID, detail, errors=errors)
        return parsed

    def _require_json(self) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != JSON:
            raise Problem(
                problems.UNSUPPORTED_MEDIA_TYPE,
                f"The body is {media_type or 'of no media type'!r}; send it with `Content-Type: {JSON}`.",
                media_types=[JSON],
            )


class JsonRoute(APIRoute):
    """A route with a JSON body: other media types are 415, and longer bodies than `MAX_JSON_BYTES` 413."""

    def get_route_handler(self) -> Handler:
        """The framework's handler, given a request that checks its body."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return checked


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        Problem: it is compressed, has more than `limit` bytes, or was cut off (and then nobody reads the reply).
    """
    declared = _declared_bytes(request)
    if declared is not None and declared > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(problems.MALFORMED_BODY, "The body was cut off.")
        chunks.append(message.get("body", b""))
        received += len(chunks[-1])
        if received > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def receive(request: Request, form: str, target: Target) -> tuple[Callable[[], dict[str, Any]], int]:
    """Receive a body of gradients or parameters.

    `octet-stream` goes straight to the target, with one copy. The other forms are parsed by the function returned,
    which may take long; it gives the members of a JSON body beside the numbers. The number of bytes that it parses
    comes with it.

    Raises:
        Problem: compressed, too long, or cut off.
        Invalid: not as long as the target.
    """
    if form == OCTET_STREAM:
        await _receive_octets(request, target)
        return dict, 0
    data = await read_body(request, min(forms.longest(form, target), request.app.state.settings.max_body_bytes))

    def parse() -> dict[str, Any]:
        if form == SAFETENSORS:
            forms.read_safetensors(data, target)
            return {}
        return json_form.read(data, target)

    return parse, len(data)


async def _receive_octets(request: Request, target: Target) -> None:
    expected = target.bits.nbytes
    declared = _declared_bytes(request)
    if declared is not None and declared != expected:
        raise forms.wrong_length(declared, target)
    octets = target.bits.view(np.uint8).data
    rest: ReceiveRest | None = request.scope.get("extensions", {}).get(RECEIVE_REST)
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(problems.MALFORMED_BODY, "The body was cut off.")
        chunk = message.get("body", b"")
        if received + len(chunk) > expected:
            raise forms.wrong_length(received + len(chunk), target)
        octets[received : received + len(chunk)] = chunk
        received += len(chunk)
        more = message.get("more_body", False)
        if more and rest is not None:
            if not await rest(octets[received:]):
                raise Problem(problems.MALFORMED_BODY, "The body was cut off.")
            return
    if received < expected:
        raise forms.wrong_length(received, target)


def _declared_bytes(request: Request) -> int | None:
    """How long the body says it is, where it comes as it is: this server takes no compressed bodies.

    Raises:
        Problem: it is compressed.
    """
    for header, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
        coding = request.headers.get(header, plain)
        if coding.strip().lower() != plain:
            raise Problem(
                problems.UNSUPPORTED_MEDIA_TYPE,
                f"The body is coded as {shown(coding)}; send it as it is, without `{header.title()}`.",
                {"Accept-Encoding": "identity"},
            )
    declared = request.headers.get("content-length")
    return None if declared is None else int(declared)


def _too_large(limit: int) -> Problem:
    return Problem(problems.BODY_TOO_LARGE, f"The body may have at most {limit} bytes here.", limit_bytes=limit)
