"""API keys, managed by whoever has one of scope `admin`."""

from collections.abc import Mapping

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment, to_json
from optserve.wire.api_keys import CLIENT, ApiKeyInfo, NewApiKey
from optserve.wire.limits import Usage


class SharedApiKeys(Resource):
    """The operations of `client.api_keys`."""

    @exchange
    def create(
        self,
        name: str,
        scope: str = CLIENT,
        *,
        expires_in_days: float | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> Exchange[NewApiKey]:
        """Make a key of scope `client` or `admin`. Its `key` is told this once.

        The first key of a server closes it to everybody without one, this client too.

        Args:
            name: what people call it, and whose its sessions and runs are.
            scope: `client` or `admin`.
            expires_in_days: absent, never.
            limits: its own, by their names in `optserve.wire.limits.Limits`, as {"sessions": 10}.

        Raises:
            ApiKeyExists: an unrevoked key has this name.
            RequestInvalid: a name, a scope, a time or a limit that no key can have.
        """
        request = {"name": name, "scope": scope, "expires_in_days": expires_in_days}
        body = to_json({**request, "limits": None if limits is None else dict(limits)})
        return (yield from self._create(NewApiKey, "/api-keys", body))

    @exchange
    def revoke(self, key: int | str) -> Exchange[None]:
        """Refuse a key from now on, by its `id` or its name.

        Raises:
            ApiKeyNotFound: no key has this id, and no unrevoked one this name.
        """
        yield from self._call("DELETE", f"/api-keys/{segment(str(key))}")

    @exchange
    def list(self) -> Exchange[list[ApiKeyInfo]]:
        """Every key without the key itself, revoked ones too, in the order of their making."""
        return (yield from self._list(ApiKeyInfo, "/api-keys"))

    @exchange
    def usage(self, key: int | str | None = None) -> Exchange[Usage]:
        """What a key uses and has used, by its `id` or its name; absent, the client's own.

        Raises:
            Forbidden: of another key, and the client's has not the scope `admin`.
            ApiKeyNotFound: no key has this id, and no unrevoked one this name.
        """
        return (yield from self._get(Usage, "/usage" if key is None else f"/api-keys/{segment(str(key))}/usage"))


class ApiKeys(Blocking, SharedApiKeys):
    """`client.api_keys`."""


class AsyncApiKeys(Awaited, SharedApiKeys):
    """`client.api_keys` of an `AsyncClient`."""
