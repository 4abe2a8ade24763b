"""A `torch.optim.Optimizer` whose updates come from a server.

    optimizer = RemoteOptimizer(model.parameters(), "lstm", "http://127.0.0.1:8000")
    loss.backward(); optimizer.step(); optimizer.zero_grad()

Each parameter group is one session, opened at the group's first step. θ stays here: what a hand-designed optimizer does
to θ itself, the learning rate and the weight decay, is done here exactly as `torch.optim` does it, and the server is
asked for updates of lr 1 without decay.
"""

import contextlib
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, SupportsFloat, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from optserve.client import Client
from optserve.errors import OptserveError, ProblemError, RequestInvalid
from optserve.torch.advice import Advice
from optserve.torch.gradients import Gathered, apply, flatten, gather, loss_in, not_finite, number
from optserve.torch.group import GroupSession, Version, find
from optserve.torch.state import guarded, unguard
from optserve.wire.bodies import OptimizerInfo

_ON_NONFINITE = ("raise", "skip")
_OF_TORCH = ("foreach", "fused", "capturable", "differentiable")
_OF_A_GROUP = {"params", "param_names", "name", "initial_lr", "swa_lr"} | {
    f"{bound}_{value}" for bound in ("base", "min", "max") for value in ("lr", "momentum")
}
"""What a group holds besides hyperparameters: PyTorch's own, and what its schedulers keep there."""
_HYPERPARAMETERS = frozenset(
    [
        "alpha",
        "amsgrad",
        "betas",
        "centered",
        "dampening",
        "eps",
        "learning_rate",
        "maximize",
        "momentum",
        "nesterov",
        "weight_decay",
    ]
)
"""What a group means as a hyperparameter, whether its optimizer has it or not. Other keys are the user's own notes."""
_DONE_HERE = {"lr": 1.0, "weight_decay": 0.0, "maximize": False}
"""Hyperparameters that are seen to here, and what the server is told in their place."""
_DECOUPLED = "adamw"
"""The kind of optimizer whose weight decay shrinks θ itself; all others' is added to the gradient."""


class RemoteOptimizer(Optimizer):
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
        **hyperparameters: `lr`, which multiplies every update (1 for a learned optimizer, PyTorch's default for a
            hand-designed one), and the hand-designed ones' own, with PyTorch's names and defaults.

    Raises:
        OptimizerNotFound: no optimizer of that name.
        HyperparametersInvalid: an unknown hyperparameter, or a value out of its range.
        RequestInvalid: an option of the guard that is none, or a value out of its range.
        ConnectionFailed: no server answers.
    """

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
        **hyperparameters: Any,
    ) -> None:
        if on_nonfinite not in _ON_NONFINITE:
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}, but must be 'raise' or 'skip'")
        for name in _OF_TORCH:
            if name in hyperparameters:
                raise TypeError(f"{name!r} says how torch computes a step, but the server computes it; leave it out")
        if not (client is None or isinstance(client, Client | str)):
            raise TypeError(f"client is {client!r}, but must be an optserve.Client, a URL or None")
        self._client = client if isinstance(client, Client) else Client(client)
        self._plan: dict[str, Any] = {"horizon": horizon, "label": label, "ttl_seconds": ttl_seconds, "guard": guard}
        self._advice = Advice(horizon)
        self._on_nonfinite = on_nonfinite
        self._sessions: dict[Tensor, GroupSession] = {}  # by the first parameter they step
        self._infos: dict[str, OptimizerInfo] = {}
        version = self._try_out(optimizer, hyperparameters)
        super().__init__(params, self._defaults(version, hyperparameters))
        self._advice.of_rate(self._info(version.optimizer), float(self.defaults["lr"]))

    # --- one step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: SupportsFloat | None = None) -> Any:
        """Send the gradients of every group, and add lr · g_t to the parameters.

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
        gathered = [self._gather(group) for group in self.param_groups]
        if self._usable(gathered, observed):
            self._add_decay(gathered)
            for group, work in zip(self.param_groups, gathered, strict=True):
                if work is not None:
                    self._step_group(group, work, observed)
        return result

    def _gather(self, group: dict[str, Any]) -> Gathered | None:
        gathered = gather(*_served(group))
        if gathered is None:
            return None
        if group.get("maximize"):
            gathered.flat.neg_()
        return gathered

    def _add_decay(self, gathered: list[Gathered | None]) -> None:
        """Weight decay on top of finite gradients, so that a parameter that is not finite is not taken for a gradient.

        Raises:
            RequestInvalid: a parameter is not finite, or too large to be decayed.
        """
        for group, work in zip(self.param_groups, gathered, strict=True):
            if work is not None and group.get("weight_decay") and not self._is_decoupled(group):
                work.flat.add_(flatten(work.parameters), alpha=float(group["weight_decay"]))
                error = not_finite(work)
                if error is not None:
                    raise RequestInvalid(
                        f"parameter {error.parameter!r} itself is not finite, or too large for its weight decay in "
                        f"float32, at index {error.index}; nothing was sent",
                        **error.fields,
                    )

    def _usable(self, gathered: list[Gathered | None], loss: float | None) -> bool:
        """Whether every number is finite; looked at before any group is sent, so that all are stepped or none is."""
        errors: list[ProblemError | None] = [not_finite(work) for work in gathered if work is not None]
        if loss is not None and not math.isfinite(loss):
            errors.append(RequestInvalid(f"the loss is {loss}; nothing was sent"))
        found = next((error for error in errors if error is not None), None)
        if found is not None and self._on_nonfinite == "raise":
            raise found
        return found is None

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
        for parameter, name in zip(*_served(group), strict=True):
            if not parameter.is_floating_point():
                mend = "; give its torch.view_as_real instead" if parameter.is_complex() else ""
                raise TypeError(f"parameter {name!r} is {parameter.dtype}, but must be real floating point{mend}")
        for name in Version._fields:
            if group[name] != self.defaults[name]:
                raise ValueError(
                    f"a group cannot have another {name!r}; make another RemoteOptimizer for its parameters"
                )
        if not 0 <= float(group["lr"]) < float("inf"):
            raise ValueError(f"lr is {float(group['lr'])}, but must be a finite number of at least 0")
        known = self._info(group["optimizer"]).hyperparameters
        own = {name for name in known if number(group[name]) != number(self.defaults[name])}
        strange = {name for name in group.keys() - self.defaults.keys() - _OF_A_GROUP if _is_meant(name, known)}
        if own - {"lr"} or strange:
            reference = find(self._client, _version([group]))
            self._try_out(reference, {name: group[name] for name in (*known, *sorted(strange))})

    def _defaults(self, version: Version, hyperparameters: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """What a group has that says nothing of its own."""
        values = {"lr": 1.0, **self._info(version.optimizer).hyperparameters, **hyperparameters}
        return {**{name: _as_torch(value) for name, value in values.items()}, **version._asdict()}

    def _try_out(self, reference: str | None, hyperparameters: dict[str, Any]) -> Version:
        """Let the server check the reference and the hyperparameters, on a session that is closed at once."""
        values = {name: number(value) for name, value in hyperparameters.items() if name != "lr"}
        guard = self._plan.get("guard")
        with self._client.sessions.create(reference, {"tried": (1,)}, hyperparameters=values, guard=guard) as session:
            return Version(session.optimizer.name, session.optimizer.version, session.optimizer.sha256)

    def _session(self, group: dict[str, Any]) -> GroupSession:
        parameters, names = _served(group)
        session = self._sessions.get(parameters[0])
        if session is not None and parameters[0] not in self.state:  # `optimizer.state.clear()` means: begin anew
            self._sessions.pop(parameters[0]).close()
            session = None
        if session is None:
            return self._open(group, parameters, names)
        if not _same(session.parameters, parameters):
            raise RuntimeError("a group's parameters have changed since its first step; add others by add_param_group")
        return session

    def _open(self, group: dict[str, Any], parameters: list[Tensor], names: list[str]) -> GroupSession:
        reference = find(self._client, _version([group]))
        shapes = {name: tuple(parameter.shape) for name, parameter in zip(names, parameters, strict=True)}
        hyperparameters = self._for_server(group)
        opened = self._client.sessions.create(reference, shapes, hyperparameters=hyperparameters, **self._plan)
        session = GroupSession(opened, parameters)
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
            ValueError: it is of other groups, or of an optimizer that is no RemoteOptimizer.
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
            _abandon(self._sessions)
            self.__dict__.update(before)
            raise
        finally:
            handle.remove()
        _abandon(old)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: h_t travels with it, the client is opened again, hooks stay behind."""
        state = super().__getstate__()
        own = {name: vars(self)[name] for name in ("_client", "_plan", "_advice", "_on_nonfinite")}
        return {**state, "state": self.state | self._fetched(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a copy, a pickle, or what `load_state_dict` has made of a state_dict."""
        unguard(state["state"])
        self.__dict__.setdefault("_sessions", {})
        self.__dict__.setdefault("_infos", {})
        super().__setstate__(state)
        version = _version(self.param_groups)
        if version != _version([self.defaults]):
            self.defaults = self._defaults(version)
        for group in self.param_groups:
            for name in self.defaults.keys() - set(_OF_TORCH):
                group.setdefault(name, self.defaults[name])

    def _look_up(self, version: Version) -> None:
        find(self._client, version)
        self._info(version.optimizer)

    def _fetched(self) -> dict[Tensor, dict[str, Any]]:
        """The state of every parameter whose hidden state is on the server, with it."""
        parts = [part for session in self._sessions.values() for part in session.state().items()]
        return {parameter: {**self.state[parameter], **part} for parameter, part in parts}


def _guard(optimizer: Optimizer, state_dict: StateDict) -> StateDict:
    """Refuse what cannot be loaded before anything has changed, and guard the hidden state from conversion."""
    cast(RemoteOptimizer, optimizer)._look_up(_version(state_dict["param_groups"]))
    return {**state_dict, "state": guarded(state_dict["state"])}


def _version(groups: Sequence[Mapping[str, Any]]) -> Version:
    """The one optimizer version of the groups."""
    if not all(name in group for group in groups for name in Version._fields):
        raise ValueError("the groups name no optimizer version: the state_dict is not a RemoteOptimizer's")
    versions = {Version(*(group[name] for name in Version._fields)) for group in groups}
    if len(versions) != 1:
        raise ValueError(f"the groups have {len(versions)} optimizer versions, but a RemoteOptimizer has one")
    return versions.pop()


def _abandon(sessions: Mapping[Tensor, GroupSession]) -> None:
    """Delete sessions that nothing depends on any more; those that the server does not delete now will expire."""
    for session in sessions.values():
        with contextlib.suppress(OptserveError):
            session.close()


def _is_meant(name: str, known: Iterable[str]) -> bool:
    """Whether a group's key is a hyperparameter of some optimizer, or looks like a misspelt one of this."""
    return name in _HYPERPARAMETERS or bool(difflib.get_close_matches(name, ["lr", *known]))


def _served(group: dict[str, Any]) -> tuple[list[Tensor], list[str]]:
    """The group's parameters without the empty ones, and what they are called: by name, else by their place."""
    names = group.get("param_names") or map(str, range(len(group["params"])))
    served = [(p, name) for p, name in zip(group["params"], names, strict=True) if p.numel()]
    return [parameter for parameter, _ in served], [name for _, name in served]


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _as_torch(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
