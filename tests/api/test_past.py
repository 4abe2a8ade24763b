"""A session's past over plain HTTP: back to a step, a second session from there, the history."""

import numpy as np
import pytest

LARGE = {"w": (40, 100), "b": (100,)}


@pytest.fixture(params=["adam", "learned", "random-hierarchical"])
def optimizer(request, learned, with_arrays):
    return learned if request.param == "learned" else request.param


def sent(count, coordinates):
    return np.random.default_rng(3).normal(size=(count, coordinates)).astype(np.float32)


def rewound(loop, step):
    reply = loop.http.post(f"{loop.path}/restore", json={"step": step})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_rewind_and_fork_repeat_what_followed(new_loop, optimizer):
    loop = new_loop(optimizer, LARGE, label="mine")
    flat = sent(70, loop.coordinates)
    digests, replies = [], []
    for step in range(70):
        digests.append(loop.get("/digest"))
        replies.append(loop.step(step, flat[step]))
    for step in (68, 21):
        assert rewound(loop, step)["next_step"] == step
        assert loop.get("/digest") == digests[step]
        assert loop.step(step, flat[step]) == replies[step]
    fork = loop.http.post(f"{loop.path}/fork", json={"step": 20})
    assert fork.status_code == 201
    made = fork.json()
    assert fork.headers["location"] == f"/v1/sessions/{made['id']}"
    assert made["id"] != loop.info["id"]
    same = ("optimizer", "parameters", "dtype", "hyperparameters", "horizon", "label", "ttl_seconds")
    assert {name: made[name] for name in same} == {name: loop.info[name] for name in same}
    other = type(loop)(loop.http, made)
    assert other.get("/digest") == digests[20]
    assert [other.step(step, flat[step]) for step in (20, 21)] == replies[20:22]
    assert other.get("/digest") == loop.get("/digest")
    other.close()


def test_a_fork_without_a_body_is_of_the_present_and_made_once_under_a_key(new_loop, gradients, assert_problem):
    loop = new_loop("adam")
    loop.step(0, gradients(loop.coordinates))
    headers = {"Idempotency-Key": f"fork of {loop.info['id']}"}
    made = [loop.http.post(f"{loop.path}/fork", headers=headers).json() for _ in range(2)]
    assert made[0]["id"] == made[1]["id"] != loop.info["id"]
    assert made[0]["next_step"] == 1
    reply = loop.http.post(f"{loop.path}/fork", headers=headers, json={"step": 0})
    assert_problem(reply, "another body", 409, "idempotency-conflict")
    loop.http.delete(f"/sessions/{made[0]['id']}")


@pytest.mark.parametrize("call", ["restore", "fork"])
def test_steps_that_are_not_there(new_loop, gradients, assert_problem, call):
    loop = new_loop("adam")
    loop.step(0, gradients(loop.coordinates))
    members = {"oldest_step": 0, "next_step": 1}
    reply = loop.http.post(f"{loop.path}/{call}", json={"step": 2})
    assert_problem(reply, "has not been reached", 409, "step-not-retained", members)
    assert_problem(loop.http.post(f"{loop.path}/{call}", json={"step": -1}), "0 to 1", 409, "step-not-retained")
    assert loop.get()["next_step"] == 1


def test_before_a_checkpoint_that_was_restored_nothing_is_retained(new_loop, gradients, assert_problem):
    loop = new_loop("adam")
    loop.step(0, gradients(loop.coordinates))
    loop.http.put(f"{loop.path}/checkpoints/one")
    loop.step(1, gradients(loop.coordinates))
    loop.http.post(f"{loop.path}/restore", json={"checkpoint": "one"})
    reply = loop.http.post(f"{loop.path}/restore", json={"step": 0})
    assert_problem(reply, "not kept any more", 409, "step-not-retained", {"oldest_step": 1})
    assert [item["step"] for item in loop.get("/history")["items"]] == [0]


@pytest.mark.parametrize("body", [{}, {"step": 0, "checkpoint": "one"}, {"step": None}])
def test_one_place_to_go_back_to_is_named(new_loop, assert_problem, body):
    loop = new_loop("adam")
    assert_problem(loop.http.post(f"{loop.path}/restore", json=body), "either", 422, "request-invalid")


def test_a_change_of_settings_is_not_undone(new_loop, gradients):
    loop = new_loop("adam", hyperparameters={"lr": 0.5})
    flat = gradients(loop.coordinates)
    first = loop.updates(0, flat)
    loop.http.patch(loop.path, json={"hyperparameters": {"lr": 0.25}, "label": "later"})
    assert (rewound(loop, 0)["hyperparameters"]["lr"], loop.get()["label"]) == (0.25, "later")
    np.testing.assert_allclose(loop.updates(0, flat), first / 2, rtol=1e-6)


def test_the_history_has_loss_and_norms(new_loop, gradients):
    loop = new_loop("adam", dtype="float16")
    norms = []
    for step, query in enumerate([{"loss": 0.5}, {"skip": "encoder.weight"}, {}]):
        flat = gradients(41)[35 if "skip" in query else 0 :].astype(np.float16)
        updates = np.frombuffer(loop.post(step, flat.tobytes(), **query).content, np.float16)
        norms.append([np.linalg.norm(numbers.astype(np.float64)) for numbers in (flat, updates)])
    items = loop.get("/history")["items"]
    assert [(item["step"], item["loss"]) for item in items] == [(0, 0.5), (1, None), (2, None)]
    found = [[item["gradient_norm"], item["update_norm"]] for item in items]
    np.testing.assert_allclose(found, norms, rtol=1e-6)
    rewound(loop, 1)
    assert loop.get("/history")["items"] == items[:1]
