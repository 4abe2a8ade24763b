"""`optserve.optax.remote_optimizer` beside Optax and beside a session stepped by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optserve.optax import RemoteState, remote_optimizer

PARAMS = {"dense": [np.ones((3, 2), np.float32), np.zeros(2, np.float32)], "scale": np.float32(0.5)}
STEPS = 20


def gradients(steps=STEPS, params=PARAMS):
    generator = np.random.default_rng(0)
    return [jax.tree.map(lambda p: generator.normal(size=p.shape).astype(np.float32), params) for _ in range(steps)]


def train(optimizer, jit, steps=STEPS):
    """Parameters and state after some steps with given gradients; the loss falls from 9 on."""

    def step(params, state, gradient, loss):
        updates, state = optimizer.update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, (jax.jit(optimizer.init) if jit else optimizer.init)(PARAMS)
    step = jax.jit(step) if jit else step
    for number, gradient in enumerate(gradients(steps)):
        params, state = step(params, state, gradient, np.float32(9 - 0.25 * number))
    return params, state


def compare(ours, theirs, atol=1e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def by_optax():
    return train(optax.adam(0.01), jit=True)[0]


@pytest.mark.parametrize("jit", [True, False])
def test_adam_is_that_of_optax(client, by_optax, jit):
    optimizer = remote_optimizer("adam", client, lr=0.01)
    params, state = train(optimizer, jit)
    compare(params, by_optax)
    assert int(state.step) == STEPS
    session = optimizer.session(state)
    assert session.parameters == {"dense/0": (3, 2), "dense/1": (2,), "scale": ()}
    assert session.refresh().next_step == STEPS
    session.close()


def test_weight_decay_takes_the_parameters_along_whatever_else_is_done_to_them(client):
    def halved(decayed):
        return train(optax.chain(decayed, optax.scale(0.5)), jit=True, steps=5)[0]

    compare(
        halved(remote_optimizer("adamw", client, lr=0.01, weight_decay=0.1)),
        halved(optax.adamw(0.01, weight_decay=0.1)),
    )


@pytest.mark.parametrize("jit", [True, False])
def test_a_learned_optimizer_sees_loss_and_horizon_as_in_a_session_by_hand(client, jit):
    shapes = {"dense/0": (3, 2), "dense/1": (2,), "scale": ()}
    session = client.sessions.create("hierarchical", shapes, horizon=STEPS)
    optimizer = remote_optimizer("hierarchical", client, horizon=STEPS)
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    for number, gradient in enumerate(gradients(6)):
        loss = np.float32(1 / (number + 3))
        by_name = dict(zip(shapes, jax.tree.leaves(gradient), strict=True))
        expected = session.step(by_name, loss=loss)
        updates, state = update(gradient, state, value=loss)
        for mine, other in zip(jax.tree.leaves(updates), expected.values(), strict=True):
            np.testing.assert_array_equal(mine, other)
    assert optimizer.session(state).digest() == session.digest()


def test_clipping_before_and_a_schedule_behind(client):
    def train_with(adam):
        schedule = optax.linear_schedule(0.01, 0.0, 5)
        return train(
            optax.chain(optax.clip_by_global_norm(0.5), adam, optax.scale_by_schedule(schedule)), jit=True, steps=5
        )

    remote = remote_optimizer("adam", client, lr=1.0)
    params, state = train_with(remote)
    compare(params, train_with(optax.adam(1.0))[0])
    assert remote.session(state).next_step == 5


def test_accumulated_gradients_and_a_wrapper_that_drops_updates(client, caplog):
    """MultiSteps asks for an update at each small step and drops most; the state tells which were."""

    def train_with(adam):
        return train(optax.MultiSteps(adam, every_k_schedule=2), jit=True, steps=4)

    remote = remote_optimizer("adam", client, lr=0.01)
    params, state = train_with(remote)
    compare(params, train_with(optax.adam(0.01))[0])
    assert remote.session(state).next_step == 2
    (message,) = caplog.messages  # once
    assert "as under optax.MultiSteps" in message


def test_steps_in_a_scan(client):
    optimizer = remote_optimizer("adam", client, lr=0.01)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train_all(params, stacked):
        return jax.lax.scan(step, (params, optimizer.init(params)), stacked)[0]

    params, state = train_all(PARAMS, jax.tree.map(lambda *g: np.stack(g), *gradients(5)))
    compare(params, train(optax.adam(0.01), jit=True, steps=5)[0])
    assert int(state.step) == 5


def test_a_state_goes_on_in_another_process_from_where_it_was_saved(client, tmp_path):
    first, second, third = gradients(3)
    optimizer = remote_optimizer("adam", client, lr=0.01, horizon=3)
    state = optimizer.update(first, optimizer.init(PARAMS))[1]
    np.savez(tmp_path / "state.npz", *state)
    expected, later = optimizer.update(second, state)
    optimizer.update(third, later)  # what a crash loses

    template = jax.eval_shape(optimizer.init, PARAMS)  # opens no session
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), template) == RemoteState(
        ((16,), np.uint8), ((), np.int32)
    )
    resumed = remote_optimizer("adam", client, lr=0.01)
    state = RemoteState(*np.load(tmp_path / "state.npz").values())
    updates, _ = jax.jit(resumed.update)(second, state)
    compare(updates, expected, atol=0)
    assert resumed.session(state).next_step == 2

    faster = remote_optimizer("adam", client, lr=0.02)  # as with every Optax optimizer, what the code says counts
    compare(faster.update(second, state)[0], jax.tree.map(lambda update: 2 * update, expected), atol=1e-8)


def test_a_checkpoint_on_the_server_for_states_older_than_its_last_steps(client):
    gradient = gradients(1)[0]
    optimizer = remote_optimizer("adam", client, lr=0.01)
    state = optimizer.update(gradient, optimizer.init(PARAMS))[1]
    optimizer.session(state).save("epoch-1")
    expected, later = optimizer.update(gradient, state)
    optimizer.update(gradient, later)
    optimizer.session(state).restore("epoch-1")
    compare(optimizer.update(gradient, state)[0], expected, atol=0)


def test_two_states_are_two_sessions_and_each_may_be_used_again(client):
    first, second = gradients(2)
    optimizer = remote_optimizer("adam", client, lr=0.01)
    update = jax.jit(optimizer.update)
    one, other = optimizer.init(PARAMS), optimizer.init(PARAMS)
    expected, after = update(first, one)
    update(second, after)
    update(second, other)
    compare(update(first, one)[0], expected, atol=0)
    compare(update(first, optimizer.init(PARAMS))[0], expected, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_float32_on_the_way(client, dtype):
    optimizer = remote_optimizer("sgd", client, lr=1.0)
    params = jnp.array([1.0, -2.5, 3.0], dtype)
    updates, state = optimizer.update(params, optimizer.init(params))
    assert updates.dtype == dtype
    np.testing.assert_array_equal(updates, -params)
    assert optimizer.session(state).info.dtype == "float32"
    assert optimizer.session(state).parameters == {"parameters": (3,)}


def test_float64(client):
    with jax.enable_x64(True):
        optimizer = remote_optimizer("sgd", client, lr=1.0)
        params = jnp.array([0.1, 1e300])
        updates, _ = jax.jit(optimizer.update)(params.at[1].set(0), optimizer.init(params))
        assert updates.dtype == "float64"
        np.testing.assert_allclose(updates, [-0.1, 0], rtol=1e-7)
        with pytest.raises(ValueError, match=r"parameters\[1\] is inf"):
            optimizer.update(params, optimizer.init(params))


def test_what_has_no_coordinates_costs_no_session(client):
    optimizer = remote_optimizer("adam", client, lr=0.01)
    before = len(client.sessions.list())
    for empty in ({}, None, {"a": np.zeros((0, 3), np.float32)}):
        updates, state = optimizer.update(empty, optimizer.init(empty))
        assert jax.tree.structure(updates) == jax.tree.structure(empty)
        assert int(state.step) == 1
    assert len(client.sessions.list()) == before
    some = {"a": np.ones(2, np.float32), "empty": np.zeros((0, 3), np.float32), "absent": None}
    updates, state = optimizer.update(some, optimizer.init(some))
    assert updates["empty"].shape == (0, 3)
    assert optimizer.session(state).parameters == {"a": (2,)}


def test_leaves_that_are_left_out(client):
    params = {"weights": np.ones(2, np.float32), "count": np.int32(3)}
    optimizer = optax.masked(remote_optimizer("sgd", client, lr=1.0), {"weights": True, "count": False})
    updates, _ = optimizer.update(params, optimizer.init(params))
    np.testing.assert_array_equal(updates["weights"], [-1, -1])


def test_leaves_that_would_have_the_same_name(client):
    params = {"a/b": np.ones(1, np.float32), "a": {"b": np.ones(2, np.float32)}}
    optimizer = remote_optimizer("sgd", client, lr=1.0)
    session = optimizer.session(optimizer.init(params))
    assert session.parameters == {"['a']['b']": (2,), "['a/b']": (1,)}
