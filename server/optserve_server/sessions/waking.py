"""Sessions are awoken for what is done to them, and put to sleep when they idle or something went wrong."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Description, Settings, VersionReference
from optserve_server.sessions.errors import StateTooLarge, session_damaged, storage_error
from optserve_server.sessions.log import SessionLog
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.plan import ServedVersion, configured
from optserve_server.sessions.recovery import recover
from optserve_server.sessions.session import Session
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.storage.errors import Damaged

T = TypeVar("T")

_FILE_THREADS = 4  # of which most wait for the disk

FindState = Callable[[str, Path, Awake, Settings], SessionLog]
"""Gives an awake part, at h_0, a state that is found in the files of the session of that id."""

LoadVersion = Callable[[VersionReference], Awaitable[ServedVersion]]


class Waking:
    """Gives sessions their awake parts, and takes them back. Called on the event loop."""

    def __init__(
        self,
        memory: StateMemory,
        directory: SessionDirectory,
        load: LoadVersion,
        make_room: Callable[[], Awaitable[bool]],
    ) -> None:
        """`make_room` puts another session to sleep, if there is one that idles, and says whether it did."""
        self.memory = memory
        self.threads = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="session")  # compute
        self._file_threads = ThreadPoolExecutor(max_workers=_FILE_THREADS, thread_name_prefix="files")
        self._directory = directory
        self._load = load
        self._make_room = make_room
        self._arenas: dict[tuple[str, tuple[str, ...]], Arena] = {}

    async def begin(self, description: Description, version: ServedVersion) -> Awake:
        """The awake part of a new session, at h_0 = 0.

        Raises:
            HyperparametersInvalid: its hyperparameters are none of the optimizer's.
            StateTooLarge: there is no room for its hidden state.
        """
        while True:
            try:
                return self._begin(description, version)
            except StateTooLarge as error:
                if not await self._makes_room_for(error):
                    raise

    def place(self, session: Session) -> Path:
        """Where the session's files are."""
        return self._directory.place(session.id)

    async def wake(self, session: Session, find: FindState = recover) -> None:
        """Give a session, in its turn, the state that its files say, or another that is found in them.

        Raises:
            SessionDamaged: a file is not what was written.
            VersionMissing: its optimizer version is not there any more.
            StateTooLarge: there is no room for its hidden state.
            StorageFull: the disk is full.
        """
        version = await self._load(session.description.version)
        while session.awake is None:
            try:
                await self._wake(session, self._begin(session.description, version), find)
            except StateTooLarge as error:
                if not await self._makes_room_for(error):
                    raise

    async def beside(self, session: Session, work: Callable[[Awake], T]) -> T:
        """What `work` makes of a second awake part of a session, at h_0, while the session stays as it is.

        Raises:
            SessionDamaged, VersionMissing, StateTooLarge: as in `wake`.
        """
        awake = await self.begin(session.description, await self._load(session.description.version))
        try:
            return await self._read(session, partial(work, awake))
        finally:
            await self.release(awake)

    def _begin(self, description: Description, version: ServedVersion) -> Awake:
        plan = description.plan
        optimizer = configured(version.optimizer, plan.hyperparameters)
        key = (version.sha256, optimizer.features)
        arena = self._arenas.get(key) or Arena(len(optimizer.features), self.memory)
        awake = Awake(version, optimizer, description.layout, plan, arena, self.memory)
        self._arenas[key] = arena
        return awake

    async def _wake(self, session: Session, awake: Awake, find: FindState) -> None:
        try:
            log = await self._read(session, partial(find, session.id, self.place(session), awake, session.settings))
        except BaseException:
            await self.release(awake)
            raise
        session.hold(awake, log)

    async def _read(self, session: Session, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
        except Damaged as damage:
            raise session_damaged(session.id, damage) from damage
        except OSError as error:
            raise storage_error(error) from error

    async def _makes_room_for(self, error: StateTooLarge) -> bool:
        return error.fields["bytes_needed"] <= self.memory.limit and await self._make_room()

    async def drop(self, session: Session) -> None:
        """Let a session sleep, in its turn."""
        awake = session.let_go()
        if awake is not None:
            await self.release(awake)

    async def release(self, awake: Awake) -> None:
        """Give the memory of an awake part back."""
        if awake.is_small:
            awake.close()
        else:
            await asyncio.get_running_loop().run_in_executor(self.threads, awake.close)
        key = (awake.version.sha256, awake.optimizer.features)
        if not awake.arena.used and self._arenas.get(key) is awake.arena:
            del self._arenas[key]

    async def do(self, work: Callable[[], T]) -> T:
        """Do work with files, beside the event loop.

        Raises:
            StorageFull: the disk is full.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._file_threads, work)
        except OSError as error:
            raise storage_error(error) from error

    def close(self) -> None:
        """Let the work in hand come to its end."""
        self.threads.shutdown()
        self._file_threads.shutdown()
