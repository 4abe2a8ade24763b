"""`client.sessions` against the running server."""

import asyncio

import numpy as np
import pytest

from optserve import AsyncClient, AsyncSession, Client, Session, errors, retries

SHAPES = {"w": (3, 4), "b": (), "v": (5,)}


@pytest.fixture
def session(client, optimizer):
    with client.sessions.create(optimizer, SHAPES) as session:
        yield session


def gradients(seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_step(session):
    updates = session.step(gradients(), loss=0.31)
    assert {name: update.shape for name, update in updates.items()} == SHAPES
    assert all(update.dtype == np.float32 and np.isfinite(update).all() and update.any() for update in updates.values())
    assert session.next_step == 1
    updates["w"] += 1


def test_the_attributes_of_a_session(client):
    session = client.sessions.create(
        "adam@1", SHAPES, hyperparameters={"betas": (0.5, np.float32(0.75))}, horizon=9, label="mine", ttl_seconds=60
    )
    assert session.optimizer.name == "adam"
    assert (session.optimizer.version, len(session.optimizer.sha256)) == (1, 64)
    assert (session.coordinates, session.next_step, session.parameters) == (18, 0, SHAPES)
    assert list(session.parameters) == ["w", "b", "v"]
    assert session.info.hyperparameters["betas"] == [0.5, 0.75]
    assert (session.info.horizon, session.info.label, session.info.ttl_seconds) == (9, "mine", 60)
    assert session.id in repr(session)
    assert "adam@1" in repr(session)


def test_parameters_may_be_declared_by_arrays(client):
    assert client.sessions.create(None, gradients()).parameters == SHAPES


def test_flat_and_by_name_are_the_same_step(client, optimizer):
    by_name, flat = (client.sessions.create(optimizer, SHAPES) for _ in range(2))
    for seed in range(3):
        updates = by_name.step(gradients(seed))
        concatenated = np.concatenate([g.ravel() for g in gradients(seed).values()]).astype(np.float32)
        assert np.array_equal(flat.step_flat(concatenated), np.concatenate([u.ravel() for u in updates.values()]))


def test_a_skipped_parameter_stands_still(client, optimizer):
    """As if its steps had not been."""
    both, alone = client.sessions.create(optimizer, SHAPES), client.sessions.create(optimizer, {"w": (3, 4)})
    for step, skip in enumerate([(), ("w", "b"), ["w"], ()]):
        given = {name: g for name, g in gradients(step).items() if name not in skip}
        updates = both.step(given, skip=skip)
        assert updates.keys() == given.keys()
        if "w" in given:
            assert np.array_equal(updates["w"], alone.step({"w": given["w"]})["w"])
    assert (both.next_step, alone.next_step) == (4, 2)


@pytest.mark.parametrize("name", ["a b", "äö", "x&y=z", "p?#%", "50%20"])
def test_names_with_characters_that_addresses_reserve(client, name):
    session = client.sessions.create("sgd", {name: (2,), "other": (2,)})
    assert session.step({"other": np.ones(2)}, loss=1, skip=[name]).keys() == {"other"}
    session.save(name)
    session.restore(name)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_sessions(client, dtype, digits):
    full, half = client.sessions.create("sgd", SHAPES), client.sessions.create("sgd", SHAPES, dtype=dtype)
    expected, updates = full.step(gradients()), half.step(gradients())
    for name in SHAPES:
        assert updates[name].dtype == np.float32
        np.testing.assert_allclose(updates[name], expected[name], rtol=digits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_server_says_which_number_is_not_finite_and_the_next_good_step_works(client, dtype, bad):
    session = client.sessions.create("adam", SHAPES, dtype=dtype)
    wrong = gradients()
    wrong["w"][1, 2] = bad
    with pytest.raises(errors.GradientsInvalid, match="w") as raised:
        session.step(wrong)
    assert (raised.value.parameter, raised.value.index) == ("w", [1, 2])
    assert session.next_step == session.refresh().next_step == 0
    session.step(gradients())
    assert session.next_step == 1


def test_mistakes_found_by_the_client_send_nothing(session):
    with pytest.raises(errors.GradientsInvalid, match="'v' is missing"):
        session.step({"w": np.zeros((3, 4)), "b": 0})
    with pytest.raises(errors.GradientsInvalid, match="no parameter 'u'"):
        session.step(gradients(), skip=["u"])
    assert session.refresh().next_step == 0


def test_two_handles_of_one_session_conflict_and_catch_up(client, session):
    other = client.sessions.get(session.id)
    session.step(gradients(0))
    with pytest.raises(errors.StepConflict, match="send step 1") as raised:
        other.step(gradients(1))
    assert raised.value.next_step == 1
    other.refresh()
    other.step(gradients(1))
    assert other.next_step == 2


def test_save_and_restore(session):
    session.step(gradients(0))
    saved = session.save("epoch 1")
    assert (saved.name, saved.step) == ("epoch 1", 1)
    digest = session.digest()
    updates = session.step(gradients(1))
    assert session.digest() != digest
    session.restore("epoch 1")
    assert (session.next_step, session.digest()) == (1, digest)
    assert same(session.step(gradients(1)), updates)
    assert [one.name for one in session.checkpoints()] == ["epoch 1"]
    with pytest.raises(errors.CheckpointNotFound, match="epoch 1"):
        session.restore("epoch 2")


def test_rewind_and_fork(session):
    taken = [(session.digest(), session.step(gradients(seed), loss=seed)) for seed in range(4)]
    assert session.rewind(3).next_step == session.next_step == 3
    assert session.digest() == taken[3][0]
    fork = session.fork(2)
    assert isinstance(fork, Session)
    assert (fork.next_step, fork.optimizer, fork.parameters) == (2, session.optimizer, session.parameters)
    assert fork.id != session.id
    assert fork.digest() == taken[2][0]
    assert same(fork.step(gradients(2), loss=2), taken[2][1])
    with session.fork() as present:
        assert present.digest() == session.digest() == fork.digest()
    fork.close()
    session.rewind(1)
    assert same(session.step(gradients(1)), taken[1][1])
    for go in (session.rewind, session.fork):
        with pytest.raises(errors.StepNotRetained, match="0 to 2") as refused:
            go(3)
        assert (refused.value.oldest_step, refused.value.next_step) == (0, 2)
    assert session.next_step == 2


def test_history(session):
    assert session.history() == []
    updates = session.step(gradients(0), loss=0.25)
    session.step(gradients(1))
    first, second = session.history()
    assert (first.step, first.loss, second.step, second.loss) == (0, 0.25, 1, None)
    for found, arrays in ((first.gradient_norm, gradients(0)), (first.update_norm, updates)):
        assert found == pytest.approx(np.sqrt(sum(np.square(array).sum() for array in arrays.values())), rel=1e-6)


def test_state_goes_into_another_session(client, optimizer, session):
    session.step(gradients(0))
    state = session.state()
    assert state == session.state()
    other = client.sessions.create(optimizer, SHAPES)
    other.load_state(state)
    assert (other.next_step, other.digest()) == (1, session.digest())
    assert same(other.step(gradients(1)), session.step(gradients(1)))


def test_a_state_of_other_parameters_is_refused(client, optimizer, session):
    other = client.sessions.create(optimizer, {"w": (3, 4)})
    with pytest.raises(errors.StateMismatch, match="other parameters"):
        other.load_state(session.state())


def test_hyperparameters_move_between_steps(client):
    session = client.sessions.create("sgd", {"w": (2,)}, hyperparameters={"lr": 1.0})
    ones = {"w": np.ones(2)}
    assert session.step(ones)["w"].tolist() == [-1, -1]
    info = session.update(hyperparameters={"lr": 0.5}, label="moved")
    assert (info.hyperparameters["lr"], info.label) == (0.5, "moved")
    assert session.step(ones)["w"].tolist() == [-0.5, -0.5]
    session.update(label="again")
    assert session.info.hyperparameters["lr"] == 0.5
    with pytest.raises(errors.HyperparametersInvalid, match="did you mean 'momentum'"):
        session.update(hyperparameters={"momentun": 0.5})


def test_parameters_for_an_optimizer_that_needs_them(client):
    session = client.sessions.create("sgd", SHAPES, hyperparameters={"lr": 0.5, "weight_decay": 0.1})
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(errors.ParametersNeeded, match="parameters"):
        session.step(zeros)
    theta = gradients()
    session.set_parameters(theta)
    for _ in range(3):
        updates = session.step(zeros)
        for name, values in theta.items():
            np.testing.assert_allclose(updates[name], -0.05 * values, rtol=1e-5)
            theta[name] = values + updates[name]
    with pytest.raises(errors.RequestInvalid, match="the value of 'v' is missing"):
        session.set_parameters({"w": theta["w"], "b": theta["b"]})


def test_closing_is_final_and_may_be_repeated(client, optimizer):
    session = client.sessions.create(optimizer, SHAPES)
    session.close()
    session.close()
    with pytest.raises(errors.SessionNotFound, match=session.id):
        session.step(gradients())
    with pytest.raises(errors.SessionNotFound):
        client.sessions.get(session.id)


def test_lists_follow_their_cursors(client):
    made = {client.sessions.create("sgd", {"w": (1,)}, label="many").id for _ in range(120)}
    listed = client.sessions.list()
    assert made <= {session.id for session in listed}
    assert len({session.id for session in listed}) == len(listed)
    for session in listed:
        if session.info.label == "many":
            session.close()


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)


def test_a_step_whose_reply_is_lost_is_taken_once(client, relay, optimizer, impatient):
    undisturbed = client.sessions.create(optimizer, SHAPES)
    with Client(relay.url) as unlucky:
        session = unlucky.sessions.create(optimizer, SHAPES)
        for seed in range(4):
            relay.lose = seed
            assert same(session.step(gradients(seed)), undisturbed.step(gradients(seed)))
    assert relay.lost == 6
    assert session.next_step == 4
    assert client.sessions.get(session.id).digest() == undisturbed.digest()


def test_a_session_whose_creation_is_lost_is_created_once(client, relay, impatient):
    before = {session.id for session in client.sessions.list()}
    relay.lose = 2
    with Client(relay.url) as unlucky:
        session = unlucky.sessions.create("sgd", SHAPES)
    assert {one.id for one in client.sessions.list()} - before == {session.id}


def test_a_fork_whose_reply_is_lost_is_made_once(client, relay, impatient):
    with Client(relay.url) as unlucky:
        session = unlucky.sessions.create("sgd", SHAPES)
        before = {one.id for one in client.sessions.list()}
        relay.lose = 2
        fork = session.fork()
    assert {one.id for one in client.sessions.list()} - before == {fork.id}


def test_after_connection_failed_the_same_step_may_be_taken_again(relay, impatient):
    with Client(relay.url, retries=1) as unlucky:
        session = unlucky.sessions.create("adam", SHAPES)
        relay.lose = 2
        with pytest.raises(errors.ConnectionFailed, match=r"tried 2 times"):
            session.step(gradients())
        session.step(gradients())
        assert session.next_step == session.refresh().next_step == 1


def test_a_deletion_whose_reply_is_lost_has_worked(client, relay, impatient):
    with Client(relay.url) as unlucky:
        session = unlucky.sessions.create("sgd", SHAPES)
        relay.lose = 1
        session.close()
    with pytest.raises(errors.SessionNotFound):
        client.sessions.get(session.id)


def test_large_steps_arrive_whole(client):
    shape = {"w": (700, 1000)}
    session = client.sessions.create("sgd", shape, hyperparameters={"lr": 1.0})
    gradient = np.random.default_rng(0).standard_normal((700, 1000)).astype(np.float32)
    assert np.array_equal(session.step({"w": gradient})["w"], -gradient)


def test_unix_sockets(unix_relay):
    with Client(unix_relay.url) as client:
        assert client.sessions.create("sgd", SHAPES).step(gradients()).keys() == SHAPES.keys()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx leaves the socket it made
def test_a_unix_socket_that_is_not_there_is_named(tmp_path):
    client = Client(f"unix://{tmp_path}/none", retries=0)
    with client, pytest.raises(errors.ConnectionFailed, match=r"unix://.*/none .*optserve serve"):
        client.sessions.list()


# --- awaited ----------------------------------------------------------------------------------------------------------


def test_the_asynchronous_client_does_the_same(server, client, optimizer):
    async def run():
        async with AsyncClient(server.url) as asynchronous:
            session = await asynchronous.sessions.create(optimizer, SHAPES)
            updates = [await session.step(gradients(seed), loss=1.0) for seed in range(3)]
            await session.save("here")
            await session.step(gradients(3))
            await session.restore("here")
            digest = await session.digest()
            listed = await asynchronous.sessions.list()
            assert session.id in {one.id for one in listed}
            async with await session.fork() as fork:
                assert isinstance(fork, AsyncSession)
                await fork.step(gradients(3))
                await fork.rewind(3)
                assert (await fork.digest(), len(await fork.history())) == (digest, 3)
            async with session:
                assert session.next_step == 3
            with pytest.raises(errors.SessionNotFound):
                await asynchronous.sessions.get(session.id)
            return updates, digest

    updates, digest = asyncio.run(run())
    blocking = client.sessions.create(optimizer, SHAPES)
    assert isinstance(blocking, Session)
    assert all(same(blocking.step(gradients(seed), loss=1.0), updates[seed]) for seed in range(3))
    assert blocking.digest() == digest


def test_sessions_step_concurrently_in_one_event_loop(server):
    async def run():
        async with AsyncClient(server.url) as asynchronous:
            sessions = [await asynchronous.sessions.create("adam", SHAPES) for _ in range(8)]
            for seed in range(5):
                replies = await asyncio.gather(*(session.step(gradients(seed)) for session in sessions))
                assert all(same(reply, replies[0]) for reply in replies)
            await asyncio.gather(*(session.close() for session in sessions))

    asyncio.run(run())


def test_the_asynchronous_client_retries_too(relay, unix_relay, impatient):
    async def run():
        async with AsyncClient(relay.url) as unlucky, AsyncClient(unix_relay.url) as by_socket:
            session = await unlucky.sessions.create("sgd", SHAPES)
            relay.lose = 2
            await session.step(gradients())
            assert (await by_socket.sessions.get(session.id)).next_step == 1

    asyncio.run(run())
    assert relay.lost == 2
