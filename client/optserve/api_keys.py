"""API keys, managed by whoever has one of scope `admin`."""

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment, to_json
from optserve.wire.api_keys import CLIENT, ApiKeyInfo, ApiKeyRequest, NewApiKey


class SharedApiKeys(Resource):
    """The operations of `client.api_keys`."""

    @exchange
    def create(self, name: str, scope: str = CLIENT, *, expires_in_days: float | None = None) -> Exchange[NewApiKey]:
        """Make a key of scope `client` or `admin`. Its `key` is told this once.

        The first key of a server closes it to everybody without one, this client too.

        Raises:
            ApiKeyExists: an unrevoked key has this name.
            RequestInvalid: a name, a scope or a time that no key can have.
        """
        body = to_json(ApiKeyRequest(name, scope, expires_in_days))
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


class ApiKeys(Blocking, SharedApiKeys):
    """`client.api_keys`."""


class AsyncApiKeys(Awaited, SharedApiKeys):
    """`client.api_keys` of an `AsyncClient`."""
