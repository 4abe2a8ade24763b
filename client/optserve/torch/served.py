"""What every optimizer here does, wherever its sessions are: a `torch.optim.Optimizer` of an optimizer version.

Each parameter group is one session, opened at the group's first step. θ stays with the group: what a hand-designed
optimizer does to θ itself, the learning rate and the weight decay, is done here exactly as `torch.optim` does it, and
the session is asked for updates of lr 1 without decay.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, SupportsFloat, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from optserve.advice import Advice
from optserve.client import Client
from optserve.torch.gradients import Gathered, add_decay, apply, first_error, gather, loss_in, number, numbers
from optserve.torch.group import GroupSession, Shapes, Steps, Version, abandon, client_of
from optserve.torch.groups import OF_TORCH, as_torch, same, served, strange_names, version_of
from optserve.torch.state import guarded, unguard
from optserve.wire.bodies import OptimizerInfo

_ON_NONFINITE = ("raise", "skip")
_DONE_HERE = {"lr": 1.0, "weight_decay": 0.0, "maximize": False}
"""Hyperparameters that are seen to here, and what the session is told in their place."""
_DECOUPLED = "adamw"
"""The kind of optimizer whose weight decay shrinks θ itself; all others' is added to the gradient."""


class ServedOptimizer(Optimizer, ABC):
    """Base of the optimizers here; what differs is where a group's session is.

    Args:
        params: as for every PyTorch optimizer: tensors, named tensors, or groups.
        optimizer: NAME, NAME@7 or NAME@ALIAS; None for the server's default optimizer.
        client: a `Client`, a server's URL, or None for OPTSERVE_URL.
        plan: what every session is created with beside its hyperparameters.
        on_nonfinite: `raise` or `skip`.
        hyperparameters: `lr`, and those of a hand-designed optimizer.
    """

    _carried: ClassVar[tuple[str, ...]] = ("_client", "_plan", "_advice", "_on_nonfinite", "_infos")
    """What copies and pickles have with them, beside parameters, groups and states."""

    def __init__(
        self,
        params: ParamsT,
        optimizer: str | None,
        client: Client | str | None,
        plan: Mapping[str, Any],
        on_nonfinite: str,
        hyperparameters: dict[str, Any],
    ) -> None:
        if on_nonfinite not in _ON_NONFINITE:
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}, but must be 'raise' or 'skip'")
        for name in OF_TORCH:
            if name in hyperparameters:
                raise TypeError(f"{name!r} says how torch computes a step, but optserve computes it; leave it out")
        self._client = client_of(client)
        self._plan = dict(plan)
        self._advice = Advice(plan["horizon"], with_loss="step(loss=loss)")
        self._on_nonfinite = on_nonfinite
        self._sessions: dict[Tensor, GroupSession] = {}  # by the first parameter they step
        self._infos: dict[str, OptimizerInfo] = {}
        version = self._try_out(optimizer, hyperparameters)
        super().__init__(params, self._defaults(version, hyperparameters))
        self._advice.of_rate(self._info(version.optimizer), float(self.defaults["lr"]))

    # --- where a session is -------------------------------------------------------------------------------------------

    @abstractmethod
    def _look_up(self, version: Version) -> None:
        """See to it that sessions of a version that a state_dict names can be opened.

        Raises:
            OptimizerNotFound, VersionNotFound: the server does not have it.
        """

    @abstractmethod
    def _check_hyperparameters(self, version: Version, hyperparameters: dict[str, Any]) -> None:
        """Check hyperparameters, without `lr`.

        Raises:
            HyperparametersInvalid: one is unknown or out of its range.
        """

    @abstractmethod
    def _create(self, version: Version, shapes: Shapes, hyperparameters: Mapping[str, Any]) -> Steps:
        """A new session, at h_0 = 0."""

    # --- one step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: SupportsFloat | None = None) -> Any:
        """Ask for the updates of every group, and add lr · g_t to the parameters.

        Args:
            closure: computes the loss and the gradients anew.
            loss: L(θ_t), a number or a 0-d tensor, for the optimizers that use it; else what the closure returns, if
                that is a number or a tensor of one.

        Returns:
            What the closure returned, or None.

        Raises:
            GradientsInvalid: a gradient is sparse or not finite; nothing has changed.
            RequestInvalid: the loss, or a parameter with weight decay, is not finite; nothing has changed.
            ConnectionFailed: the server does not answer; groups before the one it failed at have been stepped.
        """
        result = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"step takes a closure, not a {torch.typename(closure)}; pass a loss as step(loss=…)")
            with torch.enable_grad():
                result = closure()
        observed = loss_in(result) if loss is None else number(loss)
        gathered = [gather(*served(group), bool(group.get("maximize"))) for group in self.param_groups]
        work = [(group, one) for group, one in zip(self.param_groups, gathered, strict=True) if one is not None]
        # Looked at before any group is stepped, so that all are or none is.
        error = first_error([one for _, one in work], observed)
        if error is not None:
            if self._on_nonfinite == "raise":
                raise error
            return result
        for group, one in work:
            if group.get("weight_decay") and not self._is_decoupled(group):
                add_decay(one, float(group["weight_decay"]))
        for group, one in work:
            self._step_group(group, one, observed)
        return result

    def _step_group(self, group: dict[str, Any], gathered: Gathered, loss: float | None) -> None:
        session = self._session(group)
        self._advice.of_step(self._info(group["optimizer"]), session.next_step, loss)
        updates = session.step(gathered, self._for_server(group), loss)
        lr = float(group["lr"])
        apply(updates, gathered, lr, decay=lr * float(group["weight_decay"]) if self._is_decoupled(group) else 0.0)
        for parameter in gathered.parameters:
            self.state[parameter]["step"] = self.state[parameter]["step"] + 1

    # --- groups and their sessions ------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with hyperparameters of its own if it has any. Its session is opened at its first step.

        Raises:
            TypeError: a parameter is complex.
            ValueError: the group names another optimizer, or its lr is out of range.
            HyperparametersInvalid: one of the group's own hyperparameters is unknown or out of its range.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        for parameter, name in zip(*served(group), strict=True):
            if not parameter.is_floating_point():
                mend = "; give its torch.view_as_real instead" if parameter.is_complex() else ""
                raise TypeError(f"parameter {name!r} is {parameter.dtype}, but must be real floating point{mend}")
        for name in Version._fields:
            if group[name] != self.defaults[name]:
                mine = type(self).__name__
                raise ValueError(f"a group cannot have another {name!r}; make another {mine} for its parameters")
        if not 0 <= float(group["lr"]) < float("inf"):
            raise ValueError(f"lr is {float(group['lr'])}, but must be a finite number of at least 0")
        known = self._info(group["optimizer"]).hyperparameters
        own = {name for name in known if number(group[name]) != number(self.defaults[name])}
        strange = strange_names(group.keys() - self.defaults.keys(), known)
        if own - {"lr"} or strange:
            values = {name: group[name] for name in (*known, *strange) if name != "lr"}
            self._check_hyperparameters(version_of([group]), numbers(values))

    def _defaults(self, version: Version, hyperparameters: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """What a group has that says nothing of its own."""
        values = {"lr": 1.0, **self._info(version.optimizer).hyperparameters, **hyperparameters}
        return {**{name: as_torch(value) for name, value in values.items()}, **version._asdict()}

    def _try_out(self, reference: str | None, hyperparameters: dict[str, Any]) -> Version:
        """Let the server check the reference and the hyperparameters, on a session that is closed at once."""
        values = numbers({name: value for name, value in hyperparameters.items() if name != "lr"})
        guard = self._plan.get("guard")
        with self._client.sessions.create(reference, {"tried": (1,)}, hyperparameters=values, guard=guard) as session:
            return Version(session.optimizer.name, session.optimizer.version, session.optimizer.sha256)

    def _session(self, group: dict[str, Any]) -> GroupSession:
        parameters, names = served(group)
        session = self._sessions.get(parameters[0])
        if session is not None and parameters[0] not in self.state:  # `optimizer.state.clear()` means: begin anew
            self._sessions.pop(parameters[0]).close()
            session = None
        if session is None:
            return self._open(group, parameters, names)
        if not same(session.parameters, parameters):
            raise RuntimeError("a group's parameters have changed since its first step; add others by add_param_group")
        return session

    def _open(self, group: dict[str, Any], parameters: list[Tensor], names: list[str]) -> GroupSession:
        shapes = {name: tuple(parameter.shape) for name, parameter in zip(names, parameters, strict=True)}
        hyperparameters = self._for_server(group)
        opened = self._create(version_of([group]), shapes, hyperparameters)
        session = GroupSession(opened, parameters, hyperparameters)
        session.put_state(self.state)
        for parameter in parameters:
            self.state[parameter].setdefault("step", torch.tensor(0.0))
        self._sessions[parameters[0]] = session
        return session

    def _for_server(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group's hyperparameters, without what is done here."""
        known = self._info(group["optimizer"]).hyperparameters
        return {name: _DONE_HERE[name] if name in _DONE_HERE else number(group[name]) for name in known}

    def _is_decoupled(self, group: dict[str, Any]) -> bool:
        return self._info(group["optimizer"]).kind == _DECOUPLED

    def _info(self, name: str) -> OptimizerInfo:
        if name not in self._infos:
            self._infos[name] = self._client.optimizers.get(name)
        return self._infos[name]

    def close(self) -> None:
        """Delete the sessions on the server, and with them the hidden state; `state_dict()` saves it before."""
        old, self._sessions = self._sessions, {}  # gone for this object even where the server does not answer
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state.pop(parameter, None)
        for session in old.values():
            session.close()

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """PyTorch's state_dict; each parameter's part of h_t is its `hidden_state`, [features, numel], float32.

        Where the optimizer also keeps arrays of each tensor or of the session, they are beside it, in `arrays`.

        The groups name the optimizer version, and neither server nor session: it can be loaded anywhere.
        """
        fetched = self._fetched()
        held = {parameter: self.state[parameter] for parameter in fetched}
        self.state.update(fetched)
        try:
            return super().state_dict()
        finally:
            self.state.update(held)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on from a state_dict, of this server or another: new sessions of the same versions are given its h_t.

        All of it or nothing: after an error the optimizer is as it was before.

        Raises:
            ValueError: it is of other groups, or of an optimizer that is none of these.
            VersionNotFound: this server has not the version it was made with.
            ConnectionFailed: the server does not answer.
        """
        before, old, self._sessions = self.__dict__.copy(), self._sessions, {}
        handle = self.register_load_state_dict_pre_hook(_guard)
        try:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                if any("hidden_state" in self.state.get(parameter, {}) for parameter in group["params"]):
                    self._session(group)
        except BaseException:
            abandon(self._sessions)
            self.__dict__.update(before)
            raise
        finally:
            handle.remove()
        abandon(old)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: h_t travels with it, the client is opened again, hooks stay behind."""
        state = super().__getstate__()
        own = {name: vars(self)[name] for name in self._carried}
        return {**state, "state": self.state | self._fetched(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a copy, a pickle, or what `load_state_dict` has made of a state_dict."""
        unguard(state["state"])
        self.__dict__.setdefault("_sessions", {})
        self.__dict__.setdefault("_infos", {})
        super().__setstate__(state)
        version = version_of(self.param_groups)
        if version != version_of([self.defaults]):
            self.defaults = self._defaults(version)
        for group in self.param_groups:
            for name in self.defaults.keys() - set(OF_TORCH):
                group.setdefault(name, self.defaults[name])

    def _fetched(self) -> dict[Tensor, dict[str, Any]]:
        """The state of every parameter whose hidden state is on the server, with it."""
        parts = [part for session in self._sessions.values() for part in session.state().items()]
        return {parameter: {**self.state[parameter], **part} for parameter, part in parts}


def _guard(optimizer: Optimizer, state_dict: StateDict) -> StateDict:
    """Refuse what cannot be loaded before anything has changed, and guard the hidden state from conversion."""
    version, mine = version_of(state_dict["param_groups"]), cast(ServedOptimizer, optimizer)
    mine._look_up(version)
    mine._info(version.optimizer)
    return {**state_dict, "state": guarded(state_dict["state"])}
