"""A session in the process of the training loop itself: the steps of a served one, without server and without journal.

`Awake` takes them, as it does on a server, so updates and states are the same bit for bit. What a loop's process may
have set otherwise than a server's (torch's threads, default dtype and device, autocast) is set aside meanwhile.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optserve.errors import BY_URN
from optserve.wire.guard import GuardNote
from optserve_server.optimizers.base import PAGE
from optserve_server.optimizers.cores import torch_on_one_core
from optserve_server.optimizers.serving import compile_served
from optserve_server.sessions import state
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import SessionError
from optserve_server.sessions.guard_options import guard_options
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.pages import FLOAT_BYTES, Arena, StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion, configured
from optserve_server.sessions.steps import StepGradients

__all__ = ["InProcess", "ServedVersion", "compile_served"]

Float32s = NDArray[np.float32]

_ALL_PARAMETERS = 1 << 62  # coordinates: the process's memory is the only limit


class InProcess:
    """One training loop's session; what it has in common with `optserve.Session` is named alike.

    Attributes:
        id: stands in messages where a served session has its own.
        guard_notes: what the update guard did at the last step.
    """

    id = "in this process"

    def __init__(
        self,
        version: ServedVersion,
        parameters: Mapping[str, tuple[int, ...]],
        hyperparameters: Mapping[str, Any],
        horizon: int | None,
        guard: Mapping[str, Any] | bool | None,
    ) -> None:
        """Begin at h_0 = 0.

        Args:
            version: the optimizer.
            parameters: the shape of each by name.
            hyperparameters: of a hand-designed optimizer.
            horizon: how many steps the loop plans, where it knows.
            guard: as `client.sessions.create` takes it.

        Raises:
            RequestInvalid: something is wrong with the parameters, the horizon or the guard.
            HyperparametersInvalid: an unknown name or a value out of its range.
        """
        with _as_on_a_server():
            asked = dict(guard) if isinstance(guard, Mapping) else guard
            options = guard_options(asked, learned=version.optimizer.learned)
            plan = Plan(hyperparameters=dict(hyperparameters), horizon=horizon, guard=options)
            plan.check()
            layout = lay_out(list(parameters.items()), _ALL_PARAMETERS)
            optimizer = configured(version.optimizer, plan.hyperparameters)
            features = len(optimizer.features)
            arena = Arena(features, StateMemory(layout.pages * features * PAGE * FLOAT_BYTES))
            self._awake = Awake(version, optimizer, layout, plan, arena, StateMemory(sys.maxsize))
        self.guard_notes: list[GuardNote] = []

    @property
    def next_step(self) -> int:
        """The number of the step that comes next."""
        return self._awake.next_step

    def step_flat(self, gradients: Float32s, loss: float | None = None, skip: Collection[str] = ()) -> Float32s:
        """The updates g_t for ∇_t, each [n], the parameters that `skip` does not name one after another.

        Raises:
            GradientsInvalid: a number is not finite; h_t is untouched.
        """
        awake = self._awake
        with _as_on_a_server():
            sent = StepGradients(awake.layout.select(sorted(skip)), awake.dtype, loss)
            sent.bits[:] = gradients
            updates: Float32s = awake.take(sent, awake.observe(sent))
        self.guard_notes = list(awake.guard_notes)
        return updates

    def update(self, *, hyperparameters: Mapping[str, Any]) -> None:
        """Change hyperparameters of a hand-designed optimizer between two steps.

        Raises:
            HyperparametersInvalid: an unknown name or a value out of its range.
        """
        with _as_on_a_server():
            self._awake.optimizer = self._awake.configured(dict(hyperparameters))

    def refresh(self) -> None:
        """Nothing: nobody else takes its steps."""

    def state(self) -> bytes:
        """The whole of h_t as the bytes of a safetensors file, the same as a served session's."""
        return bytes(state.encode(self._awake))

    def load_state(self, file: bytes) -> None:
        """Go on from the `state()` of a session of the same version and parameters, here or on a server.

        Raises:
            MalformedBody: it is no state.
            StateMismatch: it is of another version or of other parameters.
        """
        with _as_on_a_server():
            state.decode(self._awake, file)

    def close(self) -> None:
        """Give the memory back."""
        self._awake.close()


@contextmanager
def _as_on_a_server() -> Iterator[None]:
    """Torch as it is set where `optserve serve` runs, and what goes wrong as the client tells of it."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    here = torch.get_default_device().type == "cpu"
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch_on_one_core(),
            nullcontext() if here else torch.device("cpu"),
        ):
            yield
    except SessionError as error:
        raise BY_URN[error.problem.urn](str(error), **error.fields) from error
    finally:
        torch.set_default_dtype(dtype)
