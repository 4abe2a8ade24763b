"""A step: what goes in and what comes out, in every form."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from optserve.wire.gradients import narrow, widen

OCTETS, SAFETENSORS, JSON = "application/octet-stream", "application/x-safetensors", "application/json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "scale": ()}
LARGE = {"w": (40, 100), "b": (100,)}  # enough for several pages and a thread


def split(flat, shapes=SHAPES):
    parts, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        parts[name] = flat[start : start + size].reshape(shape)
        start += size
    return parts


def as_tensors(flat, dtype):
    bits = {name: torch.from_numpy(part.copy()) for name, part in split(flat).items()}
    return {name: (part.view(DTYPES[dtype]) if dtype != "float32" else part) for name, part in bits.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["adam", "learned"])
def test_the_three_forms_give_the_same_numbers(new_loop, gradients, learned, dtype, kind):
    loops = [new_loop(learned if kind == "learned" else kind, dtype=dtype) for _ in range(3)]
    for step in range(3):
        sent = narrow(gradients(41), dtype)
        octets = loops[0].post(step, sent.tobytes())
        assert octets.headers["content-type"] == OCTETS
        assert octets.headers["optserve-step"] == str(step)
        assert "compute;dur=" in octets.headers["server-timing"]

        tensors = loops[1].post(
            step, save(as_tensors(sent.view(np.int16) if dtype != "float32" else sent, dtype)), SAFETENSORS
        )
        assert tensors.headers["content-type"] == SAFETENSORS
        replied = load(tensors.content)
        assert {name: tuple(part.shape) for name, part in replied.items()} == SHAPES
        assert all(part.dtype == DTYPES[dtype] for part in replied.values())

        nested = {name: part.tolist() for name, part in split(widen(sent, dtype)).items()}
        plain = loops[2].post(step, json.dumps({"gradients": nested}).encode(), JSON)
        assert plain.headers["content-type"] == JSON
        assert plain.json()["step"] == step

        expected = split(widen(np.frombuffer(octets.content, sent.dtype), dtype))
        for name in SHAPES:
            assert np.array_equal(replied[name].float().numpy(), expected[name])
            assert np.array_equal(np.array(plain.json()["updates"][name], np.float32), expected[name])
    digests = [loop.get("/digest") for loop in loops]
    assert digests[0] == digests[1] == digests[2]
    assert digests[0]["step"] == 3


def torch_reference(cls, shapes, start, gradients, **options):
    parameters = [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in split(start, shapes).values()]
    optimizer = cls(parameters, **options)
    for flat in gradients:
        for parameter, part in zip(parameters, split(flat, shapes).values(), strict=True):
            parameter.grad = torch.from_numpy(part.copy())
        optimizer.step()
    return np.concatenate([parameter.detach().numpy().reshape(-1) for parameter in parameters])


@pytest.mark.parametrize("shapes", [SHAPES, LARGE], ids=["small", "large"])
def test_adam_is_pytorchs_adam(new_loop, gradients, shapes):
    loop = new_loop("adam", shapes, hyperparameters={"lr": 0.01, "betas": [0.8, 0.99]})
    theta = start = gradients(loop.coordinates)
    sent = [gradients(loop.coordinates) for _ in range(20)]
    for step, flat in enumerate(sent):
        theta = theta + loop.updates(step, flat)
    expected = torch_reference(torch.optim.Adam, shapes, start, sent, lr=0.01, betas=(0.8, 0.99))
    np.testing.assert_allclose(theta, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", [OCTETS, SAFETENSORS, JSON])
def test_adamw_follows_the_parameters_it_was_sent_once(new_loop, gradients, form):
    loop = new_loop("adamw", hyperparameters={"lr": 0.05, "weight_decay": 0.5})
    theta = start = gradients(41)
    first = gradients(41)
    refused = loop.post(0, first.tobytes())
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:optserve:problem:parameters-needed")
    assert "PUT" in refused.json()["detail"]
    body = {
        OCTETS: theta.tobytes,
        SAFETENSORS: lambda: save(as_tensors(theta, "float32")),
        JSON: lambda: json.dumps({"parameters": {n: p.tolist() for n, p in split(theta).items()}}).encode(),
    }[form]()
    put = loop.http.put(f"{loop.path}/parameters", content=body, headers={"Content-Type": form})
    assert put.status_code == 204, put.text
    sent = [first, *(gradients(41) for _ in range(9))]
    for step, flat in enumerate(sent):
        theta = theta + loop.updates(step, flat)
    expected = torch_reference(torch.optim.AdamW, SHAPES, start, sent, lr=0.05, weight_decay=0.5)
    np.testing.assert_allclose(theta, expected, rtol=0, atol=2e-6)
    assert np.array_equal(load(loop.state())["parameters"].numpy(), theta)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_parameters_follow_the_updates_as_the_client_got_them(new_loop, gradients, dtype):
    loop = new_loop("adamw", dtype=dtype)
    theta = widen(narrow(gradients(41), dtype), dtype)
    headers = {"Content-Type": OCTETS}
    loop.http.put(f"{loop.path}/parameters", content=narrow(theta, dtype).tobytes(), headers=headers)
    for step in range(3):
        reply = loop.post(step, narrow(gradients(41), dtype).tobytes())
        theta = theta + widen(np.frombuffer(reply.content, narrow(theta, dtype).dtype), dtype)
    assert np.array_equal(load(loop.state())["parameters"].numpy(), theta)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skipped_parameter_stands_still(new_loop, gradients, dtype):
    """As in PyTorch, where a parameter without a gradient keeps its moments and its step count."""
    loop = new_loop("adam", dtype=dtype)
    alone = new_loop("adam", {"encoder.bias": (5,)}, dtype=dtype)
    clocks = []
    for step, skipped in enumerate([[], ["encoder.bias"], ["encoder.bias", "scale"], [], ["encoder.weight"]]):
        parts = split(gradients(41))
        sent = np.concatenate([part.reshape(-1) for name, part in parts.items() if name not in skipped])
        reply = loop.post(step, narrow(sent, dtype).tobytes(), skip=skipped)
        assert reply.status_code == 200, reply.text
        updates = widen(np.frombuffer(reply.content, narrow(sent, dtype).dtype), dtype)
        assert updates.shape == sent.shape
        if "encoder.bias" not in skipped:
            taken = len(clocks)
            clocks.append(step)
            expected = alone.post(taken, narrow(parts["encoder.bias"], dtype).tobytes()).content
            start = 0 if "encoder.weight" in skipped else 35
            got = widen(np.frombuffer(expected, narrow(sent, dtype).dtype), dtype)
            np.testing.assert_allclose(updates[start : start + 5], got, rtol=1e-5 if dtype == "float32" else 1e-2)
    assert load(loop.state())["clocks"].tolist() == [4, 3, 4]


def test_every_parameter_may_be_skipped(new_loop):
    loop = new_loop("adam")
    before = load(loop.state())["hidden_state"]
    reply = loop.post(0, b"", skip=list(SHAPES))
    assert (reply.status_code, reply.content) == (200, b"")
    assert torch.equal(load(loop.state())["hidden_state"], before)
    assert loop.get()["next_step"] == 1


def test_a_session_that_names_no_optimizer_gets_the_default_one(http, server):
    reply = http.post("/sessions", json={"parameters": [{"name": "w", "shape": [3]}]})
    default = [one["name"] for one in http.get("/optimizers").json()["items"] if one["default"]]
    assert [reply.json()["optimizer"]["name"]] == default
    http.delete(reply.headers["location"].removeprefix("/v1"))


def test_updates_beyond_all_numbers_are_null_in_json(new_loop):
    loop = new_loop("momentum", {"w": (2,)}, hyperparameters={"lr": 1e30})
    reply = loop.post(0, json.dumps({"gradients": {"w": [1e30, 0.0]}}).encode(), JSON)
    assert reply.status_code == 200
    assert reply.json()["updates"]["w"] == [None, 0.0]


def test_a_long_json_reply_is_one_valid_document(new_loop, gradients):
    shapes = {"w": (3, 5000), "b": (9000,)}
    loop, twin = new_loop("adam", shapes), new_loop("adam", shapes)
    flat = gradients(24000)
    nested = {"gradients": {name: part.tolist() for name, part in split(flat, shapes).items()}}
    replied = loop.post(0, json.dumps(nested).encode(), JSON).json()["updates"]
    got = np.concatenate([np.array(replied[name], np.float32).reshape(-1) for name in shapes])
    assert np.array_equal(got, twin.updates(0, flat))


def test_a_learned_optimizer_over_http_is_its_own_equations(new_loop, gradients, learned, http):
    from optserve_server.optimizers import Observations, initial_state, weights

    data = http.get(f"/optimizers/{learned}/versions/1/weights").content
    optimizer, phi, _ = weights.decode(data)
    loop = new_loop(learned, LARGE)
    state = initial_state(optimizer, ((loop.coordinates,),))
    for step in range(5):
        flat = gradients(loop.coordinates)
        updates, state = optimizer.step(phi, Observations(torch.from_numpy(flat), torch.tensor([float(step)])), state)
        np.testing.assert_allclose(loop.updates(step, flat), updates.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(1,) * 32, (64, 2, 1, 1)])
def test_json_may_be_indented_and_its_names_escaped(new_loop, shape):
    name = "\U0001f600" * 256
    loop = new_loop("sgd", {name: shape})
    body = json.dumps({"gradients": {name: np.ones(shape).tolist()}}, indent=8).encode()
    reply = loop.post(0, body, "application/json")
    assert reply.status_code == 200, reply.text
    assert np.array(reply.json()["updates"][name]).shape == shape
