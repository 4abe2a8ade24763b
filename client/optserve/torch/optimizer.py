"""A `torch.optim.Optimizer` whose updates come from a server.

optimizer = RemoteOptimizer(model.parameters(), "lstm", "http://127.0.0.1:8000")
loss.backward(); optimizer.step(); optimizer.zero_grad()
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.optim.optimizer import ParamsT

from optserve.client import Client
from optserve.session import Session
from optserve.torch.fallback import FallbackSession, Server
from optserve.torch.group import Shapes, Steps, Version, client_of, find
from optserve.torch.local_versions import LocalVersions
from optserve.torch.served import ServedOptimizer


class RemoteOptimizer(ServedOptimizer):
    """Steps the parameters with the updates of an optimizer that runs on a server.

    Args:
        params: as for every PyTorch optimizer: tensors, named tensors, or groups.
        optimizer: NAME, NAME@7 or NAME@ALIAS; None for the server's default optimizer.
        client: a `Client`, a server's URL, or None for OPTSERVE_URL.
        horizon: how many steps the loop plans, where it knows; optimizers that schedule use it. The logger `optserve`
            warns, once, where these are over, of a loss that would be used and is not there, and of an lr for a
            learned optimizer.
        label: names the sessions for people.
        ttl_seconds: a session expires this long after its last step, and its hidden state with it.
        guard: the update guard of the sessions, as `client.sessions.create` takes it. The logger `optserve` warns of
            each thing that it does.
        on_nonfinite: at a NaN or an infinity among the gradients, `raise` GradientsInvalid or `skip` the step.
        fallback: `local` goes on in this process while the server is away, with the same bits, and gives it the hidden
            state when it is back; the logger warns of both. It is away once the client's retries have been in vain.
        **hyperparameters: `lr`, which multiplies every update (1 for a learned optimizer, PyTorch's default for a
            hand-designed one), and the hand-designed ones' own, with PyTorch's names and defaults.

    Raises:
        OptimizerNotFound: no optimizer of that name.
        HyperparametersInvalid: an unknown hyperparameter, or a value out of its range.
        RequestInvalid: an option of the guard that is none, or a value out of its range.
        ConnectionFailed: no server answers.
        ModuleNotFoundError: there is to be a fallback, and the kernels are not installed.
    """

    _carried = (*ServedOptimizer._carried, "_server", "_versions")

    def __init__(
        self,
        params: ParamsT,
        optimizer: str | None = None,
        client: Client | str | None = None,
        *,
        horizon: int | None = None,
        label: str = "",
        ttl_seconds: float = 86400,
        guard: Mapping[str, Any] | bool | None = None,
        on_nonfinite: str = "raise",
        fallback: str | None = None,
        **hyperparameters: Any,
    ) -> None:
        if fallback not in (None, "local"):
            raise ValueError(f"fallback is {fallback!r}, but must be 'local' or None")
        client = client_of(client)
        self._server = Server(client)
        self._versions = None if fallback is None else LocalVersions()
        plan = {"horizon": horizon, "label": label, "ttl_seconds": ttl_seconds, "guard": guard}
        super().__init__(params, optimizer, client, plan, on_nonfinite, hyperparameters)

    def _try_out(self, reference: str | None, hyperparameters: dict[str, Any]) -> Version:
        version = super()._try_out(reference, hyperparameters)
        if self._versions is not None:  # now, for the server may be away later
            self._versions.fetch(self._client, version)
        return version

    def _look_up(self, version: Version) -> None:
        if self._versions is None:
            find(self._client, version)
        else:
            self._versions.fetch(self._client, version)

    def _check_hyperparameters(self, version: Version, hyperparameters: dict[str, Any]) -> None:
        if self._versions is None:
            self._try_out(find(self._client, version), hyperparameters)
        else:
            self._here(self._versions, version, {"tried": (1,)}, hyperparameters).close()

    def _create(self, version: Version, shapes: Shapes, hyperparameters: Mapping[str, Any]) -> Steps:
        on_server = partial(self._on_server, version, shapes)
        if self._versions is None:
            return on_server(hyperparameters)
        here = partial(self._here, self._versions, version, shapes)
        return FallbackSession(self._server, on_server, here, hyperparameters)

    def _on_server(self, version: Version, shapes: Shapes, hyperparameters: Mapping[str, Any]) -> Session:
        reference = find(self._client, version)
        return self._client.sessions.create(reference, shapes, hyperparameters=hyperparameters, **self._plan)

    def _here(
        self, versions: LocalVersions, version: Version, shapes: Shapes, hyperparameters: Mapping[str, Any]
    ) -> Steps:
        return versions.open(version, shapes, hyperparameters, self._plan["horizon"], self._plan["guard"])
