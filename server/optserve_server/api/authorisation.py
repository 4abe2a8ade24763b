"""Who may call what.

Every call under `/v1`, and `/metrics`, needs a valid key of any scope, as soon as there is a key (`Authorisation`). A
route that changes what is served for everybody asks for the scope `admin` on top: `dependencies=[RequiresAdmin]`, on
the route or its router. What is done in somebody's name takes the name from `UsesCaller`.
"""

import hmac
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from optserve.wire import API_PREFIX, problems
from optserve.wire.api_keys import ADMIN
from optserve.wire.limits import Limits
from optserve_server.api.auditing import audited
from optserve_server.api.key_ring import Caller, KeyRing
from optserve_server.api.problems import Problem, response
from optserve_server.api.traffic import below_root

SCHEME = "apiKey"
"""The security scheme's name in the OpenAPI document."""

METRICS_PATH = "/metrics"

METRICS_READER = Caller.of("metrics_token", ADMIN, Limits())
"""Who sends the metrics token, on that path alone."""

_HEADER = b"authorization"


class Authorisation:
    """Lets only those pass who may call at all, and notes who it is; the routes below never see others.

    It stands before the routing, so that nobody without a key learns what is there or has a body read.
    """

    def __init__(self, app: ASGIApp, metrics_token: SecretStr | None = None) -> None:
        self._app = app
        self._metrics_token = metrics_token.get_secret_value().encode() if metrics_token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = below_root(scope) if scope["type"] == "http" else ""
        if path.startswith(API_PREFIX + "/") or path == METRICS_PATH:
            keys: KeyRing = scope["app"].state.keys
            authorization = _authorization(scope)
            try:
                reads_metrics = path == METRICS_PATH and self._is_metrics_token(authorization)
                caller = METRICS_READER if reads_metrics else keys.caller(authorization)
            except Problem as refused:
                reply = response(refused.problem, refused.detail, {"WWW-Authenticate": "Bearer"})
                await reply(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _is_metrics_token(self, authorization: str | None) -> bool:
        sent = (authorization or "").partition(" ")[2].encode("latin-1")
        return self._metrics_token is not None and hmac.compare_digest(sent, self._metrics_token)


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == _HEADER:
            text: str = value.decode("latin-1")
            return text
    return None


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


class _AdminKey(SecurityBase):
    """A key of scope `admin`; FastAPI writes it into the OpenAPI document as the route's security."""

    def __init__(self) -> None:
        self.scheme_name = SCHEME
        self.model = HTTPBearerModel(description="A key made by `optserve keys create` or `POST /v1/api-keys`.")

    async def __call__(self, request: Request) -> AsyncIterator[None]:
        """Let only admins pass, and have what they do written down.

        Raises:
            Problem: the caller's key has another scope.
        """
        caller = await _caller(request)
        if caller.scope != ADMIN:
            raise Problem(
                problems.FORBIDDEN,
                f"The API key {caller.name!r} has the scope {caller.scope}, and this call needs one of scope {ADMIN}: "
                f"whoever runs the server makes one with `optserve keys create --scope {ADMIN} --name NAME`.",
            )
        async with audited(request, caller):
            yield


RequiresAdmin = Security(_AdminKey(), scopes=[ADMIN])
"""The dependency of routes that only admins may call."""


async def _keys(request: Request) -> KeyRing:
    keys: KeyRing = request.app.state.keys
    return keys


UsesKeys = Annotated[KeyRing, Depends(_keys)]

UsesCaller = Annotated[Caller, Depends(_caller)]
"""Who calls: the name of the key, `anonymous` where the server is open."""
