"""A `torch.optim.Optimizer` that runs a server's optimizer in the loop's own process.

optimizer = LocalOptimizer(model.parameters(), "lstm@champion", "http://127.0.0.1:8000")
loss.backward(); optimizer.step(loss=loss); optimizer.zero_grad()
"""

import hashlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import ParamsT

from optserve.client import Client
from optserve.errors import ReplyInvalid
from optserve.torch.group import Version, find
from optserve.torch.served import ServedOptimizer

if TYPE_CHECKING:
    from optserve_server.sessions.in_process import InProcess, ServedVersion


class LocalOptimizer(ServedOptimizer):
    """Steps the parameters with the updates that a server would send, computed here by the same kernels.

    The weights come from the server, once; from then on none is needed. The hidden state is in this process alone, and
    ends with it: what is not in a `state_dict()` that was saved is lost with the process. `state_dict`s move between
    this and RemoteOptimizer, either way.

    Args:
        params: as for every PyTorch optimizer: tensors, named tensors, or groups.
        optimizer: NAME, NAME@7 or NAME@ALIAS; None for the server's default optimizer.
        client: a `Client`, a server's URL, or None for OPTSERVE_URL.
        horizon: how many steps the loop plans, where it knows; optimizers that schedule use it. The logger `optserve`
            warns as with RemoteOptimizer.
        guard: the update guard, as `client.sessions.create` takes it.
        on_nonfinite: at a NaN or an infinity among the gradients, `raise` GradientsInvalid or `skip` the step.
        **hyperparameters: as of RemoteOptimizer.

    Raises:
        ModuleNotFoundError: the kernels are not installed; the message says how they get to be.
        OptimizerNotFound: no optimizer of that name.
        HyperparametersInvalid: an unknown hyperparameter, or a value out of its range.
        RequestInvalid: an option of the guard that is none, or a value out of its range.
        ConnectionFailed: no server answers.
    """

    _carried = (*ServedOptimizer._carried, "_versions")

    def __init__(
        self,
        params: ParamsT,
        optimizer: str | None = None,
        client: Client | str | None = None,
        *,
        horizon: int | None = None,
        guard: Mapping[str, Any] | bool | None = None,
        on_nonfinite: str = "raise",
        **hyperparameters: Any,
    ) -> None:
        self._versions = LocalVersions()
        plan = {"horizon": horizon, "guard": guard}
        super().__init__(params, optimizer, client, plan, on_nonfinite, hyperparameters)

    def _try_out(self, reference: str | None, hyperparameters: dict[str, Any]) -> Version:
        version = super()._try_out(reference, hyperparameters)
        self._look_up(version)
        return version

    def _look_up(self, version: Version) -> None:
        self._versions.fetch(self._client, version)

    def _check_hyperparameters(self, version: Version, hyperparameters: dict[str, Any]) -> None:
        self._create(version, {"tried": (1,)}, hyperparameters).close()

    def _create(
        self, version: Version, shapes: dict[str, tuple[int, ...]], hyperparameters: dict[str, Any]
    ) -> "InProcess":
        return self._versions.open(version, shapes, hyperparameters, **self._plan)


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
        shapes: Mapping[str, tuple[int, ...]],
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
