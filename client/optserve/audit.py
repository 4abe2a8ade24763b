"""The audit trail, for whoever has an API key of scope `admin`."""

from urllib.parse import urlencode

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource
from optserve.wire.audit import AuditEntry
from optserve.wire.bodies import Page

_PAGE = 1000  # the most that the server gives at once


class SharedAudit(Resource):
    """The operations of `client.audit`."""

    @exchange
    def list(self, limit: int = 100) -> Exchange[list[AuditEntry]]:
        """What admins have done, at most `limit` entries, the newest first."""
        found: list[AuditEntry] = []
        cursor: str | None = None
        while len(found) < limit:
            query = {"limit": min(limit - len(found), _PAGE), **({"cursor": cursor} if cursor else {})}
            page: Page[AuditEntry] = yield from self._get(Page[AuditEntry], f"/audit?{urlencode(query)}")
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        return found


class Audit(Blocking, SharedAudit):
    """`client.audit`."""


class AsyncAudit(Awaited, SharedAudit):
    """`client.audit` of an `AsyncClient`."""
