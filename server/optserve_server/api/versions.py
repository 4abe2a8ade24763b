"""Optimizer versions, decoded once and kept, so that nothing on a step's way asks the database."""

import asyncio
import threading
from collections import OrderedDict
from typing import TypeVar

import structlog

from optserve_server.registry import optimizers, references
from optserve_server.registry.database import UNREACHABLE, Database, reason
from optserve_server.registry.errors import RegistryError
from optserve_server.sessions.description import VersionReference
from optserve_server.sessions.errors import VersionMissing
from optserve_server.sessions.plan import ServedVersion

log = structlog.get_logger(__name__)

MAX_VERSIONS = 64

K = TypeVar("K")
V = TypeVar("V")


class VersionCache:
    """The versions served last, and by which reference each was asked for last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: OrderedDict[tuple[str, int], ServedVersion] = OrderedDict()
        self._meant: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._changing = threading.Lock()

    async def resolve(self, reference: str) -> ServedVersion:
        """The version that `NAME`, `NAME@7` or `NAME@ALIAS` means now, ready to serve.

        While the database is away, what it meant last, so that training can begin all the same.

        Raises:
            RegistryError: there is none; the message names what comes near.
            sqlalchemy.exc.SQLAlchemyError: the database is away, and the reference was not asked for lately.
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
        parsed = references.parse(reference)
        if parsed.number is not None and (version := self._versions.get((parsed.name, parsed.number))) is not None:
            return version  # versions never change
        try:
            with self._database.session() as db_session:
                stored = optimizers.resolve(db_session, reference)
        except UNREACHABLE as error:
            version = self._last(reference)
            if version is None:
                raise
            log.warning("the database is away: an optimizer is what it was", reference=reference, reason=reason(error))
            return version
        key = (stored.name, stored.number)
        version = self._versions.get(key)
        if version is None:
            version = ServedVersion.of(stored.name, stored.number, stored.sha256, stored.weights)
        self._remember(reference, key, version)
        return version

    def _last(self, reference: str) -> ServedVersion | None:
        with self._changing:
            key = self._meant.get(reference)
            return None if key is None else self._versions.get(key)

    def _remember(self, reference: str, key: tuple[str, int], version: ServedVersion) -> None:
        with self._changing:
            _keep(self._versions, key, version)
            _keep(self._meant, reference, key)


def _keep(cache: OrderedDict[K, V], key: K, value: V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > MAX_VERSIONS:
        cache.popitem(last=False)
