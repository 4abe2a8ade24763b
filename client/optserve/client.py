"""The two clients: the same operations, blocking or awaited.

with optserve.Client("http://127.0.0.1:8000") as client:
    session = client.sessions.create("lstm", {"w": (64, 20)})

async with optserve.AsyncClient("unix:///run/optserve.sock") as client:
    session = await client.sessions.create("lstm", {"w": (64, 20)})
"""

from typing import Any, Self

from optserve.api_keys import ApiKeys, AsyncApiKeys
from optserve.audit import AsyncAudit, Audit
from optserve.connection import AsyncConnection, Connection, Options
from optserve.evaluations import AsyncEvaluations, Evaluations
from optserve.meta_training import AsyncMetaTraining, MetaTraining
from optserve.optimizers import AsyncOptimizers, Optimizers
from optserve.sessions import AsyncSessions, Sessions
from optserve.tasks import AsyncTasks, Tasks
from optserve.wire.limits import Usage

TIMEOUT = 60.0
RETRIES = 10  # over more than half a minute: a server that is started again is waited for


class Client:
    """A connection to an optserve server. Threads may share it; processes may not, so make it after a fork.

    Attributes:
        url: where the server is.
        sessions: create, find and list sessions.
        optimizers: read optimizers and their versions; move aliases.
        tasks: list the task families.
        meta_training: launch, find and list meta-training runs.
        evaluations: have optimizers compared with tuned baselines; read what was found.
        api_keys: make, list and revoke API keys; read what they use.
        audit: read what admins have done.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = TIMEOUT, retries: int = RETRIES
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: http://HOST:PORT, https://HOST or unix:///PATH; else OPTSERVE_URL, else http://127.0.0.1:8000.
            api_key: else OPTSERVE_API_KEY, else none.
            timeout: seconds to wait for each reply.
            retries: how often a request that is safe to repeat is sent again, with growing pauses; of a server that
                never answered at most 5 times.

        Raises:
            AddressInvalid: `url` is none of these.
        """
        self._options = Options.of(url, api_key, timeout, retries)
        self._connection = Connection(self._options)
        self.url = self._options.address.url
        self.sessions = Sessions(self._connection)
        self.optimizers = Optimizers(self._connection)
        self.tasks = Tasks(self._connection)
        self.meta_training = MetaTraining(self._connection)
        self.evaluations = Evaluations(self._connection)
        self.api_keys = ApiKeys(self._connection)
        self.audit = Audit(self._connection)

    def usage(self) -> Usage:
        """What this client's key uses now and has used so far, and its limits."""
        return self.api_keys.usage()

    def trying_once(self, timeout: float) -> Self:
        """A second client of the same server, which waits `timeout` seconds and sends nothing again."""
        return type(self)(self.url, self._options.api_key, timeout=timeout, retries=0)

    def close(self) -> None:
        """Close the sockets. Sessions live on on the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A client is a connection, not data: copies of what holds it share it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled client opens its URL again; its key is not written down but taken from the environment."""
        return _reopen, (type(self), self.url, self._options.timeout, self._options.retries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class AsyncClient:
    """The same, awaited. Tasks of one event loop may share it.

    Attributes:
        url: where the server is.
        sessions: create, find and list sessions.
        optimizers: read optimizers and their versions; move aliases.
        tasks: list the task families.
        meta_training: launch, find and list meta-training runs.
        evaluations: have optimizers compared with tuned baselines; read what was found.
        api_keys: make, list and revoke API keys; read what they use.
        audit: read what admins have done.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = TIMEOUT, retries: int = RETRIES
    ) -> None:
        """As `Client`.

        Raises:
            AddressInvalid: `url` is neither http, https nor unix.
        """
        options = Options.of(url, api_key, timeout, retries)
        self._connection = AsyncConnection(options)
        self.url = options.address.url
        self.sessions = AsyncSessions(self._connection)
        self.optimizers = AsyncOptimizers(self._connection)
        self.tasks = AsyncTasks(self._connection)
        self.meta_training = AsyncMetaTraining(self._connection)
        self.evaluations = AsyncEvaluations(self._connection)
        self.api_keys = AsyncApiKeys(self._connection)
        self.audit = AsyncAudit(self._connection)

    async def usage(self) -> Usage:
        """What this client's key uses now and has used so far, and its limits."""
        return await self.api_keys.usage()

    async def close(self) -> None:
        """Close the sockets. Sessions live on on the server."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


def _reopen(kind: type[Client], url: str, timeout: float, retries: int) -> Client:
    return kind(url, timeout=timeout, retries=retries)
