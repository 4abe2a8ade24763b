"""One parameter group's session."""

import contextlib
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from optserve.advice import tell_of_guard
from optserve.client import Client
from optserve.errors import OptimizerNotFound, OptserveError, StepConflict, VersionNotFound
from optserve.layout import Float32
from optserve.torch import state
from optserve.torch.gradients import Gathered
from optserve.wire.guard import GuardNote

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a session's parameters by name."""


class Version(NamedTuple):
    """An optimizer version as a parameter group carries it. The sha256 means the same on every server."""

    optimizer: str
    version: int
    sha256: str


class Steps(Protocol):
    """What a group asks of its session, wherever that is: see `optserve.Session`."""

    @property
    def id(self) -> str:
        """What messages call it."""
        ...

    @property
    def guard_notes(self) -> list[GuardNote]:
        """What the update guard did at the last step."""
        ...

    @property
    def next_step(self) -> int:
        """The number of the step that comes next."""
        ...

    def step_flat(self, gradients: Float32, loss: float | None, skip: Collection[str], /) -> Float32:
        """g_t for ∇_t, each [n], without the parameters in `skip`."""
        ...

    def update(self, *, hyperparameters: Mapping[str, Any]) -> object:
        """Change hyperparameters between two steps."""
        ...

    def refresh(self) -> object:
        """Let `next_step` be what comes next indeed."""
        ...

    def state(self) -> bytes:
        """h_t as a safetensors file."""
        ...

    def load_state(self, state: bytes, /) -> object:
        """Go on from what `state()` gave."""
        ...

    def close(self) -> None:
        """Give h_t up."""
        ...


class GroupSession:
    """A session and the parameters whose hidden state it holds; `hyperparameters` are what it was created with."""

    def __init__(self, session: Steps, parameters: Sequence[Tensor], hyperparameters: Mapping[str, Any]) -> None:
        self._session = session
        self._hyperparameters = dict(hyperparameters)
        self.parameters = list(parameters)

    @property
    def next_step(self) -> int:
        """The number of the step that comes next."""
        return self._session.next_step

    def step(self, gathered: Gathered, hyperparameters: dict[str, Any], loss: float | None) -> Tensor:
        """g_t for the gathered gradients, [n], float32, on the CPU. Hyperparameters that have moved are sent first."""
        moved = {name: value for name, value in hyperparameters.items() if value != self._hyperparameters[name]}
        if moved:
            self._session.update(hyperparameters=moved)
            self._hyperparameters.update(moved)
        try:
            updates = self._session.step_flat(gathered.flat.numpy(), loss, gathered.skip)
        except StepConflict:
            self._session.refresh()  # the server took a step whose reply was lost for good: the next one can go on
            raise
        tell_of_guard(self._session.id, self._session.next_step - 1, self._session.guard_notes)
        return torch.from_numpy(updates)

    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Each parameter's part of h_t, as PyTorch keeps it."""
        parts = state.split(self._session.state(), self._sizes())
        return dict(zip(self.parameters, parts, strict=True))

    def put_state(self, kept: MutableMapping[Tensor, dict[str, Any]]) -> None:
        """Put the hidden states that a state_dict has brought into the session, which holds them from now on."""
        parts = [kept.get(parameter, {}) for parameter in self.parameters]
        if any("hidden_state" in part for part in parts):
            self._session.load_state(state.join(self._session.state(), self._sizes(), parts))
            for parameter, part in zip(self.parameters, parts, strict=True):
                kept[parameter] = {name: value for name, value in part.items() if name not in state.HELD_BY_SERVER}

    def close(self) -> None:
        """Delete the session."""
        self._session.close()

    def _sizes(self) -> list[int]:
        return [parameter.numel() for parameter in self.parameters]


def abandon(sessions: Mapping[Tensor, GroupSession]) -> None:
    """Close sessions that nothing depends on any more; those that the server does not delete now will expire."""
    for session in sessions.values():
        with contextlib.suppress(OptserveError):
            session.close()


def client_of(given: Client | str | None) -> Client:
    """The client that is meant by itself, by its URL, or by nothing.

    Raises:
        TypeError: it is none of these.
    """
    if not (given is None or isinstance(given, Client | str)):
        raise TypeError(f"client is {given!r}, but must be an optserve.Client, a URL or None")
    return given if isinstance(given, Client) else Client(given)


def find(client: Client, version: Version) -> str:
    """The reference of a version on this server, which may have numbered it otherwise than the one it comes from.

    Raises:
        OptimizerNotFound: the server has no optimizer of that name.
        VersionNotFound: it has, but not this version.
    """
    name = version.optimizer
    mend = (
        f"take its weights from the server it comes from with `optserve optimizers export {name}@{version.version}`, "
        f"and give them to {client.url} with `optserve optimizers import`"
    )
    try:
        known = client.optimizers.versions(name)
    except OptimizerNotFound as error:
        raise OptimizerNotFound(f"{client.url} has no optimizer {name!r}; {mend}") from error
    for candidate in known:
        if candidate.sha256 == version.sha256:
            return f"{name}@{candidate.version}"
    raise VersionNotFound(f"{client.url} has no version of {name!r} with the sha256 {version.sha256}; {mend}")
