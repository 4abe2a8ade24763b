"""Task families: the distributions of optimizees that optimizers are meta-trained and evaluated on."""

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource
from optserve.wire.bodies import TaskFamilyInfo


class SharedTasks(Resource):
    """The operations of `client.tasks`."""

    @exchange
    def list(self) -> Exchange[list[TaskFamilyInfo]]:
        """Every family: what it is, and the JSON schema of its parameters."""
        return (yield from self._list(TaskFamilyInfo, "/tasks"))


class Tasks(Blocking, SharedTasks):
    """`client.tasks`."""


class AsyncTasks(Awaited, SharedTasks):
    """`client.tasks` of an `AsyncClient`."""
