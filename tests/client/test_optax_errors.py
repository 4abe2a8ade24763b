"""What `optserve.optax.remote_optimizer` refuses, in words that are also readable under `jit`, and what it says."""

import importlib
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optserve import Client
from optserve.errors import (
    ConnectionFailed,
    GradientsInvalid,
    HyperparametersInvalid,
    OptimizerNotFound,
    RequestInvalid,
    SessionNotFound,
    StepConflict,
    StepNotRetained,
)
from optserve.optax import remote_optimizer

PARAMS = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
NOT_FINITE = {**PARAMS, "b": np.array([[0, 1], [np.nan, 0]], np.float32)}


@pytest.fixture(scope="module")
def adam(client):
    return remote_optimizer("adam", client, lr=0.01)


@pytest.fixture(scope="module")
def update(adam):
    """`adam.update` under jit."""
    return jax.jit(adam.update)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("hierarchicl", {}, OptimizerNotFound, "did you mean 'hierarchical'"),
        ("adam", {"learning_rate": 0.1}, HyperparametersInvalid, "'learning_rate'; it takes lr"),
        ("adam", {"lr": optax.constant_schedule(0.1)}, TypeError, "optax.scale_by_schedule"),
        ("hierarchical", {"horizon": 0}, RequestInvalid, "`horizon` is a number of steps"),
        ("hierarchical", {"guard": {"patienc": 1}}, RequestInvalid, "did you mean 'patience'"),
        ("adam", {"on_nonfinite": "ignore"}, ValueError, "must be 'raise' or 'skip'"),
    ],
)
def test_options_are_checked_at_once(client, name, options, error, message):
    with pytest.raises(error, match=message):
        remote_optimizer(name, client, **options)


def test_a_client_that_is_none(client):
    with pytest.raises(TypeError, match=r"client is 3, but must be an optserve\.Client, a URL or None"):
        remote_optimizer("adam", 3)
    assert remote_optimizer("adam", client.url).init({}).step == 0


def test_numbers_that_are_not_finite(client, adam, update):
    state = adam.init(PARAMS)
    with pytest.raises(GradientsInvalid, match=r"b\[1, 0\] is nan"):
        adam.update(NOT_FINITE, state)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"GradientsInvalid: The gradient b\[1, 0\] is nan"):
        update(NOT_FINITE, state)
    with pytest.raises(RequestInvalid, match="`loss` is 'inf'"):
        adam.update(PARAMS, state, value=np.inf)
    update(PARAMS, state)

    skipping = remote_optimizer("adam", client, lr=0.01, on_nonfinite="skip")
    for gradients, loss in ((NOT_FINITE, 1.0), (PARAMS, np.nan)):
        updates, after = skipping.update(gradients, state, value=loss)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
        assert after.step == 0
    assert skipping.update(PARAMS, after, value=1.0)[1].step == 1


@pytest.mark.parametrize("loss", [np.ones(2, np.float32), 1j])
def test_a_loss_that_is_none(adam, update, loss):
    state = adam.init(PARAMS)
    with pytest.raises(ValueError, match="value is the loss, one real number, but here is"):
        update(PARAMS, state, value=loss)
    assert update(PARAMS, state, value=3)[1].step == 1


@pytest.mark.parametrize("dtype", [np.int32, np.complex64])
def test_leaves_that_cannot_be_served(adam, dtype):
    with pytest.raises(TypeError, match=r"parameter 'n' is .*; optax.masked or optax.multi_transform"):
        adam.init({**PARAMS, "n": np.ones(2, dtype)})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": PARAMS["a"]}, "'b' is missing"),
        ({**PARAMS, "c": np.ones(1, np.float32)}, "'c' is new"),
        ({**PARAMS, "b": np.zeros(4, np.float32)}, r"'b' is \(4,\) and was \(2, 2\)"),
    ],
)
def test_gradients_of_other_parameters(adam, other, message):
    with pytest.raises(GradientsInvalid, match=f"{message}; call init with the parameters"):
        adam.update(other, adam.init(PARAMS))


def test_weight_decay_without_the_parameters(client):
    adamw = remote_optimizer("adamw", client, lr=0.01)
    state = adamw.init(PARAMS)
    with pytest.raises(ValueError, match=r"call update\(gradients, state, params\)"):
        adamw.update(PARAMS, state)
    with pytest.raises(ValueError, match="params and gradients are not of the same parameters: 'b' is missing"):
        adamw.update(PARAMS, state, {"a": PARAMS["a"]})
    assert adamw.update(PARAMS, state, PARAMS)[1].step == 1


def test_maps_over_members_or_devices(adam, update):
    state = adam.init(PARAMS)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf]), PARAMS)
    with pytest.raises(ValueError, match=r"inside vmap or grad: .*Call update outside"):
        jax.jit(jax.vmap(adam.update, in_axes=(0, None)))(stacked, state)
    with pytest.raises(ValueError, match="Cannot `vmap` ordered IO callback"):  # JAX's own words
        jax.vmap(update, in_axes=(0, None))(stacked, state)
    with pytest.raises(ValueError, match=r"inside pmap or shard_map .*jax\.lax\.pmean"):
        jax.pmap(adam.update, in_axes=(0, None))(stacked, state)


def test_a_state_that_is_ahead_of_its_session_or_too_far_behind(adam, update):
    state = adam.init(PARAMS)
    with pytest.raises(jax.errors.JaxRuntimeError, match="StepConflict: the state is at step 7, but its session"):
        update(PARAMS, state._replace(step=jnp.int32(7)))
    session = adam.session(state)
    session.load_state(session.state())  # nothing before is retained
    session.step(PARAMS)
    after = state._replace(step=jnp.int32(session.next_step))
    with pytest.raises(StepNotRetained, match="can go back to the steps"):
        adam.update(PARAMS, state._replace(step=jnp.int32(-1)))
    assert adam.update(PARAMS, after)[1].step == 2


def test_a_step_that_another_loop_has_taken(client, adam):
    state = adam.init(PARAMS)
    adam.session(state)
    remote_optimizer("adam", client, lr=0.01).update(PARAMS, state)
    with pytest.raises(StepConflict):
        adam.update(jax.tree.map(np.negative, PARAMS), state)


def test_a_session_that_is_gone_or_is_another_optimizers(client, adam, update):
    state = adam.init(PARAMS)
    with pytest.raises(ValueError, match=r"give it remote_optimizer\('adam'\)"):
        remote_optimizer("sgd", client).update(PARAMS, state)
    adam.session(state).close()
    with pytest.raises(SessionNotFound):
        adam.update(PARAMS, state)
    with pytest.raises(jax.errors.JaxRuntimeError, match="SessionNotFound: There is no session"):
        update(PARAMS, state)


def test_the_session_of_what_holds_no_state_or_several(adam):
    state = adam.init(PARAMS)
    assert adam.session(optax.MultiSteps(adam, 2).init(PARAMS)).parameters == {"a": (3,), "b": (2, 2)}
    for several in ({"a": 1}, (state, state)):
        with pytest.raises(ValueError, match=r"there are [02] RemoteStates"):
            adam.session(several)


def test_a_lost_reply_costs_nothing_and_a_lost_server_no_step(relay, client):
    with Client(relay.url, retries=1) as shaky:
        adam = remote_optimizer("adam", shaky, lr=0.01)
        update = jax.jit(adam.update)
        state = adam.init(PARAMS)
        relay.lose = 1
        updates, state = update(PARAMS, state)
        assert relay.lost == 1
        np.testing.assert_allclose(updates["a"], -0.01, rtol=1e-6)

        relay.lose = 2  # the server takes the step, and the loop never hears of it
        with pytest.raises(jax.errors.JaxRuntimeError, match="ConnectionFailed: "):
            update(PARAMS, state)
        assert client.sessions.get(adam.session(state).id).next_step == 2
        other = jax.tree.map(lambda leaf: leaf + 1, PARAMS)
        _, after = update(other, state)  # another minibatch
        assert after.step == 2
        assert update(PARAMS, after)[1].step == 3

    with pytest.raises(ConnectionFailed, match="is the server running"):
        remote_optimizer("adam", Client("http://127.0.0.1:9", retries=0))


def test_advice_on_the_use_of_a_learned_optimizer(client, caplog):
    optimizer = remote_optimizer("hierarchical", client, horizon=1, guard=False)
    state = optimizer.init(PARAMS)
    with caplog.at_level(logging.WARNING, "optserve"):
        for _ in range(3):
            _, state = optimizer.update(PARAMS, state)
    missing, over = caplog.messages
    assert "call update(…, value=loss)" in missing
    assert "the 1 steps of the declared horizon are over" in over


def test_the_update_guard_is_told_of(client, caplog):
    optimizer = remote_optimizer("hierarchical", client, guard={"max_update_rms": 1e-9})
    state = optimizer.init(PARAMS)
    with caplog.at_level(logging.WARNING, "optserve"):
        optimizer.update(PARAMS, state, value=1.0)
    assert "the update guard steps by Adam for now: a" in caplog.text


@pytest.mark.parametrize("absent", ["jax", "optax"])
def test_without_jax_or_optax_the_extra_is_named(monkeypatch, absent):
    for module in [name for name in sys.modules if name.startswith("optserve.optax")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"optserve\.optax needs JAX and Optax: pip install 'optserve\[optax\]'"
    ):
        importlib.import_module("optserve.optax")
