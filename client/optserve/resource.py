"""What every part of the client does: call, check the reply, decode it, follow a list's pages."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from optserve import errors
from optserve.decoding import decode
from optserve.exchange import Exchange, Request, Response
from optserve.retries import Retries
from optserve.wire import HEADER_IDEMPOTENCY_KEY
from optserve.wire.bodies import Page
from optserve.wire.gradients import JSON

T = TypeVar("T")

_FAILURES = 400
_REDIRECTIONS = 300


class Resource:
    """Base of the shared halves: operations as generators over one connection, blocking or awaited."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._retries: Retries = connection.retries

    def _call(
        self,
        method: str,
        path: str,
        content: bytes | memoryview = b"",
        headers: Mapping[str, str] | None = None,
        *,
        repeatable: bool = False,
        delay: float = 0.0,
        room: memoryview | None = None,
    ) -> Exchange[Response]:
        """One call with its retries, after `delay` seconds; the response is a success.

        A POST is sent again only if it is `repeatable`. `room` is as in Request.
        """
        repeatable = repeatable or method != "POST"
        request = Request(method, path, content, headers, repeatable=repeatable, delay=delay, room=room)
        response = yield from self._retries.send(request)
        return _checked(response)

    def _get(self, kind: type[T], path: str) -> Exchange[T]:
        response = yield from self._call("GET", path)
        return decode(kind, response.content)

    def _send(self, kind: type[T], method: str, path: str, body: Any) -> Exchange[T]:
        """Send a dataclass as JSON; members that are None stay away."""
        response = yield from self._call(method, path, to_json(body), {"Content-Type": JSON})
        return decode(kind, response.content)

    def _create(self, kind: type[T], path: str, content: bytes, media_type: str = JSON) -> Exchange[T]:
        """A POST that creates: with an idempotency key, so that a repeated one creates nothing more."""
        headers = {"Content-Type": media_type, HEADER_IDEMPOTENCY_KEY: os.urandom(16).hex()}
        response = yield from self._call("POST", path, content, headers, repeatable=True)
        return decode(kind, response.content)

    def _list(self, kind: type[T], path: str) -> Exchange[list[T]]:
        """Every item of a list, page after page."""
        page: Page[T] = yield from self._get(Page[kind], path)  # type: ignore[valid-type]
        items = page.items
        while page.next_cursor:
            page = yield from self._get(Page[kind], f"{path}?{urlencode({'cursor': page.next_cursor})}")  # type: ignore[valid-type]
            items += page.items
        return items


def to_json(body: Any) -> bytes:
    """A dataclass as JSON, without its members that are None, or a mapping as it is.

    NumPy's and torch's numbers are taken as numbers.
    """
    members = body if isinstance(body, Mapping) else dataclasses.asdict(body)
    members = {name: value for name, value in members.items() if value is not None}
    return json.dumps(members, default=_number).encode()


def segment(name: str) -> str:
    """A name as one segment of a path.

    Raises:
        RequestInvalid: it cannot be one, however it is quoted.
    """
    if name in ("", ".", "..") or "/" in name:
        raise errors.RequestInvalid(
            f"{name!r} cannot be a name in an address: write one that is not '.', '..' or empty, without '/'"
        )
    return quote(name, safe="")


def _number(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be sent as JSON; use numbers, strings, lists and dictionaries")


def _checked(response: Response) -> Response:
    if response.status >= _FAILURES:
        raise errors.from_reply(response.status, response.content)
    if response.status >= _REDIRECTIONS:
        where = response.headers.get("Location", "another address")
        raise errors.ReplyInvalid(f"the server redirects to {where}; give the client that address")
    return response
