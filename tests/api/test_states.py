"""The hidden state: kept under names, gone back to, carried out and in, bit for bit."""

import json
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save

from optserve.wire import tensors

LARGE = {"w": (40, 100), "b": (100,)}
SMALL = {"encoder.weight": (7, 5), "encoder.bias": (5,), "scale": ()}
SAFETENSORS = {"Content-Type": "application/x-safetensors"}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(params=["adam", "adamw", "sgd", "learned", "random-hierarchical", "random-small_fc"])
def optimizer(request, learned, with_arrays):
    return learned if request.param == "learned" else request.param


def prepared(new_loop, optimizer, shapes, theta):
    loop = new_loop(optimizer, shapes)
    if optimizer == "adamw":
        assert loop.http.put(f"{loop.path}/parameters", content=theta.tobytes(), headers=OCTETS).status_code == 204
    return loop


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
def test_going_back_to_a_checkpoint_repeats_what_followed(new_loop, gradients, optimizer, shapes):
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    loop = prepared(new_loop, optimizer, shapes, gradients(size))
    sent = [gradients(size) for _ in range(6)]
    first = [loop.step(step, flat) for step, flat in enumerate(sent[:3])]
    assert len(first) == 3
    saved = loop.http.put(f"{loop.path}/checkpoints/third").json()
    assert (saved["name"], saved["step"]) == ("third", 3)
    digest = loop.get("/digest")
    after = [loop.step(step, flat) for step, flat in enumerate(sent[3:], 3)]
    if optimizer != "sgd":
        assert loop.get("/digest") != digest
    for _ in range(2):
        restored = loop.http.post(f"{loop.path}/restore", json={"checkpoint": "third"}).json()
        assert restored["next_step"] == 3
        assert loop.get("/digest") == digest
        assert [loop.step(step, flat) for step, flat in enumerate(sent[3:], 3)] == after


def test_checkpoints_are_listed_and_replaced(new_loop, gradients, assert_problem):
    loop = new_loop("adam")
    assert loop.get("/checkpoints") == {"items": [], "next_cursor": None}
    for step, name in enumerate(["b", "a", "b"]):
        loop.http.put(f"{loop.path}/checkpoints/{name}")
        loop.step(step, gradients(41))
    items = loop.get("/checkpoints")["items"]
    assert [(item["name"], item["step"]) for item in items] == [("a", 1), ("b", 2)]
    page = loop.get("/checkpoints?limit=1")
    assert [item["name"] for item in loop.get(f"/checkpoints?cursor={page['next_cursor']}")["items"]] == ["b"]
    reply = loop.http.post(f"{loop.path}/restore", json={"checkpoint": "bb"})
    assert_problem(reply, "did you mean 'b'", 404, "checkpoint-not-found")
    assert_problem(loop.http.put(f"{loop.path}/checkpoints/%00"), "printable", 422, "request-invalid")
    assert loop.get()["next_step"] == 3


@pytest.mark.parametrize("name", ["a/b", "../", "..", "épochs 1/2", "restore"])
def test_a_checkpoint_can_have_any_printable_name(new_loop, name):
    loop = new_loop("adam")
    saved = loop.http.put(f"{loop.path}/checkpoints/{quote(name, safe='').replace('.', '%2E')}")
    assert (saved.status_code, saved.json()["name"]) == (200, name)
    assert loop.http.post(f"{loop.path}/restore", json={"checkpoint": name}).status_code == 200


@pytest.mark.parametrize(("name", "word"), [("%ff", "UTF-8"), ("a%EF%BF%BD", "UTF-8"), ("", "1 to 256")])
def test_a_checkpoint_s_name_that_is_none(new_loop, assert_problem, name, word):
    loop = new_loop("adam")
    assert_problem(loop.http.put(f"{loop.path}/checkpoints/{name}"), word, 422, "request-invalid")


def test_a_step_before_a_restore_is_not_answered_after_it(new_loop, gradients, assert_problem):
    loop = new_loop("adam")
    first, second = gradients(41), gradients(41)
    loop.step(0, first)
    loop.http.put(f"{loop.path}/checkpoints/one")
    loop.step(1, second)
    loop.http.post(f"{loop.path}/restore", json={"checkpoint": "one"})
    for flat in (first, second):  # what was step 1 must not pass for step 0
        assert_problem(loop.post(0, flat.tobytes()), "send step 1", 409, "step-conflict", {"next_step": 1})


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
def test_a_state_goes_on_in_another_session(new_loop, gradients, optimizer, shapes):
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    loop = prepared(new_loop, optimizer, shapes, gradients(size))
    for step in range(3):
        loop.step(step, gradients(size))
    name = next(iter(shapes))
    loop.post(3, gradients(size)[int(np.prod(shapes[name])) :].tobytes(), skip=name)
    state = loop.state()
    other = new_loop(optimizer, shapes)
    put = other.http.put(f"{other.path}/state", content=state, headers=SAFETENSORS)
    assert (put.status_code, put.json()["next_step"]) == (200, 4)
    assert other.state() == state == loop.state()
    assert other.get("/digest") == loop.get("/digest")
    for step in range(4, 7):
        flat = gradients(size)
        assert other.step(step, flat) == loop.step(step, flat)
    assert other.state() == loop.state() != state


def test_a_state_can_be_read_by_anyone(new_loop, gradients):
    loop = new_loop("adam", LARGE)
    flat = gradients(4100)
    loop.step(0, flat)
    arrays = load(loop.state())
    assert arrays["hidden_state"].shape == (2, 4100)
    np.testing.assert_allclose(arrays["hidden_state"][0], 0.1 * flat, rtol=1e-5)
    np.testing.assert_allclose(arrays["hidden_state"][1], 0.001 * flat**2, rtol=1e-4)
    assert arrays["clocks"].tolist() == [1, 1]
    metadata = tensors.decode(loop.state())[1]
    assert metadata["step"] == "1"
    assert (metadata["optimizer"], metadata["optimizer_version"]) == ("adam", "1")
    assert metadata["optimizer_sha256"] == loop.info["optimizer"]["sha256"]
    assert json.loads(metadata["parameters"]) == [{"name": n, "shape": list(s)} for n, s in LARGE.items()]
    assert json.loads(metadata["features"]) == ["exp_avg", "exp_avg_sq"]


@pytest.mark.parametrize(
    ("source", "target", "mismatch"),
    [
        (("adam", SMALL), ("rmsprop", SMALL), "optimizer_sha256"),
        (("adam", SMALL), ("adam", LARGE), "parameters"),
        (("adam", {"a": (3,)}), ("adam", {"b": (3,)}), "parameters"),
        (("adam", SMALL), ("adam", SMALL, {"amsgrad": True}), "features"),
    ],
)
def test_a_state_of_something_else_is_refused(new_loop, gradients, assert_problem, source, target, mismatch):
    state = new_loop(*source).state()
    loop = new_loop(target[0], target[1], hyperparameters=target[2] if len(target) > 2 else {})
    loop.step(0, gradients(loop.coordinates))
    digest = loop.get("/digest")
    reply = loop.http.put(f"{loop.path}/state", content=state, headers=SAFETENSORS)
    assert_problem(reply, "reate ", 409, "state-mismatch", {"mismatch": mismatch})
    assert loop.get("/digest") == digest


def rewritten(state, metadata=None, drop=None, **arrays):
    old, old_metadata = tensors.decode(state)
    old.update(arrays)
    return tensors.encode({k: v for k, v in old.items() if k != drop}, {**old_metadata, **(metadata or {})})


BAD_STATES = {
    "nothing": lambda state: b"",
    "nonsense": lambda state: b"\x10" * 100,
    "cut off": lambda state: state[:-1],
    "too long": lambda state: state + b"\0",
    "another format": lambda state: rewritten(state, {"format": "0"}),
    "a step of words": lambda state: rewritten(state, {"step": "ten"}),
    "a negative step": lambda state: rewritten(state, {"step": "-1"}),
    "an endless step": lambda state: rewritten(state, {"step": "9" * 400}),
    "no metadata": lambda state: save({"hidden_state": torch.zeros(2, 41)}),
    "no clocks": lambda state: rewritten(state, drop="clocks"),
    "no hidden state": lambda state: rewritten(state, drop="hidden_state"),
    "half a hidden state": lambda state: rewritten(state, hidden_state=np.zeros((1, 41), np.float32)),
    "float64": lambda state: rewritten(state, hidden_state=np.zeros((2, 41))),
    "negative clocks": lambda state: rewritten(state, clocks=np.array([1, -1, 1])),
    "clocks ahead of the step": lambda state: rewritten(state, clocks=np.array([1, 2, 1])),
    "too few parameters": lambda state: rewritten(state, parameters=np.zeros(40, np.float32)),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_malformed_state_changes_nothing(new_loop, gradients, assert_problem, case):
    loop, other = new_loop("adam"), new_loop("adam")
    flat = gradients(41)
    loop.step(0, flat)
    other.step(0, flat)
    body = BAD_STATES[case](loop.state())
    assert_problem(loop.http.put(f"{loop.path}/state", content=body, headers=SAFETENSORS), "", 400, "malformed-body")
    assert loop.state() == other.state()
    assert loop.step(0, flat) == other.step(0, flat)
    assert loop.step(1, flat) == other.step(1, flat)


def test_a_state_in_another_form_is_refused(new_loop, assert_problem):
    loop = new_loop("adam")
    reply = loop.http.put(f"{loop.path}/state", content=loop.state(), headers=OCTETS)
    assert_problem(reply, "application/x-safetensors", 415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("body", "headers", "status", "slug"),
    [
        (np.zeros(40, "<f4").tobytes(), OCTETS, 422, "request-invalid"),
        (np.full(41, np.nan, "<f4").tobytes(), OCTETS, 422, "request-invalid"),
        (save({"scale": torch.ones(())}), SAFETENSORS, 422, "request-invalid"),
        (b'{"parameters": {}, "loss": 1}', {"Content-Type": "application/json"}, 422, "request-invalid"),
        (b"nonsense", SAFETENSORS, 400, "malformed-body"),
    ],
)
def test_bad_parameters_change_nothing(new_loop, gradients, assert_problem, body, headers, status, slug):
    loop = prepared(new_loop, "adamw", SMALL, gradients(41))
    state = loop.state()
    assert_problem(loop.http.put(f"{loop.path}/parameters", content=body, headers=headers), "", status, slug)
    assert loop.state() == state


def test_a_state_goes_on_at_another_server(new_loop, gradients, start_server):
    loops = [new_loop(optimizer) for optimizer in ("adam", "rnnprop")]
    with httpx.Client(base_url=f"{start_server().url}/v1") as elsewhere:
        for loop in loops:
            for step in range(3):
                loop.step(step, gradients(41))
            body = {"optimizer": loop.info["optimizer"]["name"], "parameters": loop.info["parameters"]}
            other = type(loop)(elsewhere, elsewhere.post("/sessions", json=body).json())
            assert elsewhere.put(f"{other.path}/state", content=loop.state(), headers=SAFETENSORS).status_code == 200
            assert other.get("/digest") == loop.get("/digest")
            for step in range(3, 6):
                flat = gradients(41)
                assert other.step(step, flat) == loop.step(step, flat)
            assert other.get("/digest") == loop.get("/digest")


def test_a_state_that_is_much_longer_than_this_session_s_is_refused(new_loop, assert_problem):
    loop = new_loop("adam")
    reply = loop.http.put(f"{loop.path}/state", content=bytes(1 << 18), headers=SAFETENSORS)
    assert_problem(reply, "at most", 413, "body-too-large")


def test_a_state_with_names_that_json_escapes_fits(new_loop, gradients):
    shapes = {"\U0001f600" * 250 + str(number): (1,) * 32 for number in range(50)}
    loop, other = new_loop("sgd", shapes), new_loop("sgd", shapes)
    loop.step(0, gradients(50))
    assert other.http.put(f"{other.path}/state", content=loop.state(), headers=SAFETENSORS).status_code == 200
    assert other.state() == loop.state()


@pytest.mark.parametrize(("step", "taken"), [(2**53 - 1, True), (2**53, False)])
def test_steps_end_where_numbers_of_json_do(new_loop, gradients, assert_problem, step, taken):
    """A state may say that its step is the last one there is; the step behind it is refused, and so is such a state."""
    source, target = new_loop("adam", SMALL), new_loop("adam", SMALL)
    arrays, metadata = tensors.decode(source.state())
    data = tensors.encode(arrays, {**metadata, "step": str(step)})
    assert target.http.put(f"{target.path}/state", content=data, headers=SAFETENSORS).status_code == 200
    reply = target.post(step, gradients(41).tobytes())
    if taken:
        assert reply.status_code == 200
    else:
        assert_problem(reply, f"from 0 to {2**53 - 1}", 422, "request-invalid")
    assert target.get()["next_step"] == 2**53
    there_again = target.http.put(f"{target.path}/state", content=target.state(), headers=SAFETENSORS)
    assert there_again.status_code == 200
    beyond = tensors.encode(arrays, {**metadata, "step": str(2**53 + 1)})
    reply = target.http.put(f"{target.path}/state", content=beyond, headers=SAFETENSORS)
    assert_problem(reply, "no step", 400, "malformed-body")
