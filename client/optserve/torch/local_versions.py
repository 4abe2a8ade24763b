"""Optimizer versions in this process: the weights from a server, the kernels from the server's package."""

import hashlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from optserve.client import Client
from optserve.errors import ReplyInvalid
from optserve.torch.group import Shapes, Version, find

if TYPE_CHECKING:
    from optserve_server.sessions.in_process import InProcess, ServedVersion


class LocalVersions:
    """The weights that servers have given, and sessions in this process that step with them.

    Raises:
        ModuleNotFoundError: the kernels are not installed.
    """

    def __init__(self) -> None:
        _room().compile_served()  # now, not at the first step
        self._files: dict[str, bytes] = {}  # by their sha256
        self._ready: dict[str, ServedVersion] = {}  # what was made of them

    def fetch(self, client: Client, version: Version) -> None:
        """Take the weights of a version from a server, unless they are here.

        Raises:
            OptimizerNotFound, VersionNotFound: the server has no such version.
            ReplyInvalid: what came is not the version's file.
        """
        if version.sha256 in self._files:
            return
        name, _, number = find(client, version).rpartition("@")
        file = client.optimizers.weights(name, int(number))
        if hashlib.sha256(file).hexdigest() != version.sha256:
            raise ReplyInvalid(f"the weights of {name}@{number} have not the sha256 that {client.url} says; try again")
        self._files[version.sha256] = file

    def open(
        self,
        version: Version,
        shapes: Shapes,
        hyperparameters: Mapping[str, Any],
        horizon: int | None,
        guard: Mapping[str, Any] | bool | None,
    ) -> "InProcess":
        """A session of a version whose weights are here, at h_0 = 0.

        Raises:
            RequestInvalid, HyperparametersInvalid: as of `client.sessions.create`.
        """
        room, key = _room(), version.sha256
        if key not in self._ready:
            self._ready[key] = room.ServedVersion.of(*version, self._files[key])
        session: InProcess = room.InProcess(self._ready[key], shapes, hyperparameters, horizon, guard)
        return session

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have the files."""
        return {**vars(self), "_ready": {}}


def _room() -> ModuleType:
    """The server's room of sessions, whose code takes the steps."""
    try:
        from optserve_server.sessions import in_process
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"to run an optimizer in this process takes the server's kernels, and {error.name} is not installed: "
            "pip install 'optserve[local]'",
            name=error.name,
        ) from error
    return in_process
