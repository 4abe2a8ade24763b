"""Optimizer versions, decoded once and kept, so that nothing on a step's way asks the database."""

import asyncio
from collections import OrderedDict

from optserve_server.optimizers import weights
from optserve_server.registry import optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.errors import RegistryError
from optserve_server.sessions.description import VersionReference
from optserve_server.sessions.errors import VersionMissing
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

    async def load(self, reference: VersionReference) -> ServedVersion:
        """That very version, for a session that holds it.

        Raises:
            VersionMissing: it is not in the registry, or another one is in its place.
        """
        version = self._versions.get((reference.name, reference.number))
        if version is not None and version.sha256 == reference.sha256:
            return version
        name = f"{reference.name}@{reference.number}"
        try:
            version = await self.resolve(name)
        except RegistryError as error:
            raise VersionMissing(f"The session holds {name}, which is not in the registry any more: {error}") from error
        if version.sha256 != reference.sha256:
            raise VersionMissing(
                f"The session holds {name} with the sha256 {reference.sha256}, but the registry's {name} has "
                f"{version.sha256}: it is another database than the one that the session was created with."
            )
        return version

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
