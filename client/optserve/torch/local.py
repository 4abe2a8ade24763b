"""A `torch.optim.Optimizer` that runs a server's optimizer in the loop's own process.

optimizer = LocalOptimizer(model.parameters(), "lstm@champion", "http://127.0.0.1:8000")
loss.backward(); optimizer.step(loss=loss); optimizer.zero_grad()
"""

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT

from optserve.client import Client
from optserve.torch.group import Shapes, Steps, Version
from optserve.torch.local_versions import LocalVersions
from optserve.torch.served import ServedOptimizer


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

    def _create(self, version: Version, shapes: Shapes, hyperparameters: Mapping[str, Any]) -> Steps:
        return self._versions.open(version, shapes, hyperparameters, **self._plan)
