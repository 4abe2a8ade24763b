"""The life of a session."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest


def create(http, key=None, **body):
    headers = {"Idempotency-Key": key} if key else {}
    body = {"optimizer": "adam", "parameters": [{"name": "w", "shape": [3]}], **body}
    return http.post("/sessions", json=body, headers=headers)


def test_a_session_says_what_it_is(http):
    shapes = [{"name": "w", "shape": [2, 3]}, {"name": "b", "shape": []}]
    reply = create(http, parameters=shapes, dtype="bfloat16", label="a try", horizon=100, ttl_seconds=60)
    info = reply.json()
    assert reply.headers["location"] == f"/v1/sessions/{info['id']}"
    version = http.get("/optimizers/adam/versions/1").json()
    assert info["optimizer"] == {"name": "adam", "version": 1, "sha256": version["sha256"]}
    told = ("next_step", "coordinates", "parameters", "dtype", "label", "horizon", "ttl_seconds")
    assert [info[key] for key in told] == [0, 7, shapes, "bfloat16", "a try", 100, 60]
    assert info["hyperparameters"]["betas"] == [0.9, 0.999]
    lives = datetime.fromisoformat(info["expires_at"]) - datetime.fromisoformat(info["created_at"])
    assert lives.total_seconds() == pytest.approx(60, abs=1)
    path = f"/sessions/{info['id']}"
    assert http.get(path).json() == info
    assert http.delete(path).status_code == 204
    assert http.get(path).json()["type"] == "urn:optserve:problem:session-not-found"


def test_a_list_comes_in_pages(http):
    made = [create(http, label=str(number)).json()["id"] for number in range(5)]
    found, cursor = [], None
    while True:
        page = http.get("/sessions", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) <= 2
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [one for one in found if one in made] == made
    for one in made:
        http.delete(f"/sessions/{one}")


def test_a_page_describes_no_more_parameters_than_one_session_can_have(http):
    parameters = [{"name": str(number), "shape": [1]} for number in range(4000)]
    made = [create(http, parameters=parameters).json()["id"] for _ in range(4)]
    found, cursor, longest = [], None, 0
    while True:
        page = http.get("/sessions", params={"limit": 1000} | ({"cursor": cursor} if cursor else {})).json()
        longest = max(longest, sum(len(item["parameters"]) for item in page["items"]))
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [one for one in found if one in made] == made
    assert longest <= 10_000
    for one in made:
        http.delete(f"/sessions/{one}")


def test_an_idempotency_key_creates_one_session(http, assert_problem):
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: create(http, key="one of a kind"), range(8)))
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert len({reply.headers["location"] for reply in replies}) == 1
    other = create(http, key="one of a kind", label="other")
    assert_problem(other, "'one of a kind'", 409, "idempotency-conflict")
    assert create(http, key="another").json()["id"] != replies[0].json()["id"]


def test_hyperparameters_change_between_steps(new_loop, gradients):
    loop, twin = new_loop("adam"), new_loop("adam")
    for step in range(2):
        flat = gradients(41)
        loop.step(step, flat)
        twin.step(step, flat)
    patched = loop.http.patch(loop.path, json={"hyperparameters": {"lr": 0.004}, "label": "warm"}).json()
    assert (patched["hyperparameters"]["lr"], patched["label"]) == (0.004, "warm")
    assert patched["hyperparameters"]["betas"] == [0.9, 0.999]
    flat = gradients(41)
    np.testing.assert_allclose(loop.updates(2, flat), 4 * twin.updates(2, flat), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "slug", "word"),
    [
        ({"hyperparameters": {"amsgrad": True}}, "hyperparameters-invalid", "create a new session"),
        ({"hyperparameters": {"learning_rate": 1}}, "hyperparameters-invalid", "it takes lr"),
        ({"hyperparameters": {"lr": -1}}, "hyperparameters-invalid", "lr"),
        ({"ttl_seconds": -1, "label": "lost"}, "request-invalid", "ttl_seconds"),
        ({"label": "x" * 300, "ttl_seconds": 5}, "request-invalid", "label"),
        ({"dtype": "float16"}, "request-invalid", "dtype"),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(new_loop, assert_problem, changes, slug, word):
    loop = new_loop("adam")
    before = loop.get()
    reply = loop.http.patch(loop.path, json=changes)
    assert word.lower() in reply.json()["detail"].lower()
    assert_problem(reply, "", 422, slug)
    assert loop.get() == before


def test_a_session_that_is_not_used_expires(new_loop, gradients, assert_problem):
    loop = new_loop("adam", ttl_seconds=1.0)
    for step in range(4):  # each step moves it
        time.sleep(0.4)
        loop.step(step, gradients(41))
    expires_at = loop.get()["expires_at"]
    deadline = time.monotonic() + 10
    while loop.http.get(loop.path).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_problem(loop.http.get(loop.path), expires_at, 410, "session-expired")
    time.sleep(1.5)  # swept by now, and still known
    late = loop.post(4, gradients(41).tobytes())
    assert_problem(late, expires_at, 410, "session-expired", {"expired_at": expires_at})
    assert loop.http.delete(loop.path).status_code == 410


def test_a_longer_life_can_be_had(new_loop):
    loop = new_loop("adam", ttl_seconds=0.5)
    loop.http.patch(loop.path, json={"ttl_seconds": 3600})
    time.sleep(0.7)
    assert loop.get()["ttl_seconds"] == 3600


def test_memory_has_a_limit_and_comes_back(start_server, assert_problem):
    import httpx

    server = start_server("--state-memory", "5MiB")
    headers = {"Content-Type": "application/octet-stream"}
    with httpx.Client(base_url=f"{server.url}/v1") as http:
        large = [{"name": "w", "shape": [1_000_000]}]  # 8 MB of hidden state, 8 MB beside it
        reply = create(http, parameters=large)
        assert_problem(reply, "--state-memory", 507, "state-too-large")
        assert reply.json()["bytes_needed"] > reply.json()["bytes_free"]
        half = [{"name": "w", "shape": [300_000]}]  # 4.8 MB in all
        replies = [create(http, parameters=half) for _ in range(3)]  # one can be awake at a time
        for reply in replies:
            path = reply.headers["location"].removeprefix("/v1")
            assert http.put(f"{path}/checkpoints/one").status_code == 200
            theta = http.put(f"{path}/parameters", content=bytes(1_200_000), headers=headers)
            assert_problem(theta, "free", 507, "state-too-large")
            assert http.post(f"{path}/steps/0", content=bytes(1_200_000), headers=headers).status_code == 200
            assert http.delete(path).status_code == 204
