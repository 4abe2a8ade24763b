"""Optimizer versions, decoded once and kept, so that nothing on a step's way asks the database."""

import asyncio
from collections import OrderedDict

from optserve_server.optimizers import weights
from optserve_server.registry import optimizers
from optserve_server.registry.database import Database
from optserve_server.sessions.plan import ServedVersion

MAX_VERSIONS = 64


class VersionCache:
    """The versions served last, by name and SHA-256."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: OrderedDict[tuple[str, int], ServedVersion] = OrderedDict()

    async def resolve(self, reference: str) -> ServedVersion:
        """The version that `NAME`, `NAME@7` or `NAME@ALIAS` means now, ready to serve.

        Raises:
            RegistryError: there is none; the message names what comes near.
        """
        return await asyncio.to_thread(self._resolve, reference)

    def _resolve(self, reference: str) -> ServedVersion:
        with self._database.session() as db_session:
            stored = optimizers.resolve(db_session, reference)
        key = (stored.name, stored.number)
        version = self._versions.get(key)
        if version is None:
            optimizer, phi, _ = weights.decode(stored.weights)
            version = ServedVersion(stored.name, stored.number, stored.sha256, optimizer, phi)
            self._versions[key] = version
            if len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)
        return version
