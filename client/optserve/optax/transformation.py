"""An Optax `GradientTransformation` whose updates come from a server.

    optimizer = remote_optimizer("hierarchical", "http://127.0.0.1:8000", horizon=1000)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params, value=loss)
    params = optax.apply_updates(params, updates)

A state is a session's id and the number of its next step, two small arrays: h_t stays on the server. Under `jit` the
server is called back to; each step needs the number that the one before it gave, so that they keep their order.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import io_callback

from optserve.client import Client
from optserve.optax.leaves import Leaves, difference
from optserve.optax.stepping import KEY_BYTES, Stepper
from optserve.session import Session

T = TypeVar("T")


class RemoteState(NamedTuple):
    """Where the loop is. Any tool that saves pytrees of arrays saves it; h_t is on the server."""

    session: jax.Array
    """The session's id, [16], uint8."""
    step: jax.Array
    """The step that comes next, [], int32."""


class RemoteTransformation(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax has no type hints
    """What `remote_optimizer` makes: `init` and `update` as of every Optax optimizer, and `session`."""

    _stepper: Stepper

    def session(self, state: Any) -> Session:
        """The session of a state, to save and restore its h_t, look at its history, or close it.

        Args:
            state: a RemoteState, or the state of a chain or another wrapper that has one.

        Raises:
            ValueError: there is none in it, or several, or it is of another optimizer.
            SessionNotFound: it was closed, or belongs to another key.
        """
        leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, RemoteState))
        found = [leaf for leaf in leaves if isinstance(leaf, RemoteState)]
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} RemoteStates in what was given, but must be one; give that alone")
        return self._stepper.session(np.asarray(found[0].session))


def remote_optimizer(
    optimizer: str | None = None,
    client: Client | str | None = None,
    *,
    horizon: int | None = None,
    label: str = "",
    ttl_seconds: float = 86400,
    guard: Mapping[str, Any] | bool | None = None,
    on_nonfinite: str = "raise",
    **hyperparameters: Any,
) -> RemoteTransformation:
    """A gradient transformation whose updates are those of an optimizer that runs on a server.

    `init` opens a session, and `update` takes its next step, with and without `jit`. `update` takes the loss as
    `value`, for the optimizers that use it, and the parameters, for those with weight decay. Given an older state, it
    goes back for it, to any step that the server retains, at least the last 50.

    Args:
        optimizer: NAME, NAME@7 or NAME@ALIAS; None for the server's default optimizer.
        client: a `Client`, a server's URL, or None for OPTSERVE_URL.
        horizon: how many steps the loop plans, where it knows; optimizers that schedule use it. The logger `optserve`
            warns, once, where these are over, and of a loss that would be used and is not there.
        label: names the sessions for people.
        ttl_seconds: a session expires this long after its last step, and its hidden state with it.
        guard: the update guard of the sessions, as `client.sessions.create` takes it. The logger `optserve` warns of
            each thing that it does.
        on_nonfinite: at a NaN or an infinity in the gradients or the loss, `raise`, or `skip` the step: its updates
            are zeros.
        **hyperparameters: of a hand-designed optimizer, with PyTorch's names and defaults. A schedule of rates is
            `optax.chain(remote_optimizer("adam", lr=1.0), optax.scale_by_schedule(…))`.

    Raises:
        OptimizerNotFound: no optimizer of that name.
        HyperparametersInvalid: an unknown hyperparameter, or a value out of its range.
        RequestInvalid: another option is out of its range.
        ConnectionFailed: no server answers.
    """
    if not (client is None or isinstance(client, Client | str)):
        raise TypeError(f"client is {client!r}, but must be an optserve.Client, a URL or None")
    for name, given in hyperparameters.items():
        if callable(given) or isinstance(given, jax.core.Tracer):
            raise TypeError(
                f"{name!r} is {given!r}, but the server needs its value; a schedule of rates is "
                "optax.chain(remote_optimizer(…, lr=1.0), optax.scale_by_schedule(…))"
            )
    plan = {"horizon": horizon, "label": label, "ttl_seconds": ttl_seconds, "guard": guard}
    service = client if isinstance(client, Client) else Client(client)
    stepper = Stepper(service, optimizer, hyperparameters, plan, on_nonfinite)
    transformation = RemoteTransformation(partial(_init, stepper), partial(_update, stepper))
    transformation._stepper = stepper
    return transformation


def _init(stepper: Stepper, params: Any) -> RemoteState:
    shapes = Leaves(params).shapes
    key = jnp.zeros(KEY_BYTES, jnp.uint8)
    if shapes:
        key = _on_host(lambda _: stepper.open(shapes), key, key)
    return RemoteState(key, jnp.zeros((), jnp.int32))


def _update(
    stepper: Stepper, updates: Any, state: RemoteState, params: Any = None, *, value: Any = None, **_: Any
) -> tuple[Any, RemoteState]:
    gradients = Leaves(updates)
    if not gradients.shapes:
        return updates, state._replace(step=state.step + 1)
    arguments = {**state._asdict(), "gradients": gradients.flatten(), "loss": _loss(value)}
    if stepper.needs_parameters:
        arguments["parameters"] = _parameters(gradients, params)

    def step(arguments: Any) -> Any:
        loss = arguments["loss"]
        flat, next_step = stepper.step(
            gradients.shapes,
            np.asarray(arguments["session"]),
            int(arguments["step"]),
            np.asarray(arguments["gradients"]),
            None if loss is None else float(loss),
            np.asarray(arguments["parameters"]) if "parameters" in arguments else None,
        )
        return flat, np.int32(next_step)

    flat, next_step = _on_host(step, (arguments["gradients"], state.step), arguments)
    return gradients.unflatten(flat), RemoteState(state.session, next_step)


def _loss(value: Any) -> Any:
    if value is not None and (jnp.shape(value) != () or jnp.iscomplexobj(value)):
        raise ValueError(f"value is the loss, one real number, but here is {jax.typeof(value)}")
    return value


def _parameters(gradients: Leaves, params: Any) -> jax.Array:
    if params is None:
        raise ValueError("weight decay needs the parameters: call update(gradients, state, params)")
    parameters = Leaves(params)
    found = difference(gradients.shapes, parameters.shapes)
    if found:
        raise ValueError(f"params and gradients are not of the same parameters: {found}")
    return parameters.flatten()


def _on_host(function: Callable[[Any], Any], like: T, arguments: Any) -> T:
    """function(arguments), whose result has the shapes and dtypes of `like`; where JAX is tracing, as a callback."""
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        return cast(T, jax.tree.map(jnp.asarray, function(arguments)))
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if axes:
        raise ValueError(
            f"remote_optimizer inside pmap or shard_map (axis {', '.join(axes)}): each device would step the session; "
            "average the gradients there (jax.lax.pmean), and call update outside"
        )
    try:
        return cast(T, io_callback(function, jax.eval_shape(lambda: like), arguments, ordered=True))
    except ValueError as error:  # what is traced is not carried out yet, so this is JAX's own
        raise ValueError(
            "remote_optimizer inside vmap or grad: a session takes one step at a time, and steps have no derivative. "
            "Call update outside: on the stacked pytree, as one model, or model by model, each with its own state"
        ) from error
