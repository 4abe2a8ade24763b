"""Whatever is wrong with a step: a problem that names it, nothing lost, and the next good step works."""

import json
import socket
import struct
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save

OCTETS, SAFETENSORS, JSON = "application/octet-stream", "application/x-safetensors", "application/json"
SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "scale": ()}
GOOD = np.arange(41, dtype=np.float32) / 10


def with_value(place, value):
    flat = GOOD.copy()
    flat[place] = value
    return flat.tobytes()


def tensors(**changes):
    parts = {"encoder.weight": torch.ones(7, 5), "encoder.bias": torch.ones(5), "scale": torch.ones(())}
    parts |= {name.replace("_", "."): part for name, part in changes.items()}
    return save({name: part for name, part in parts.items() if part is not None})


def nested(**changes):
    parts = {"encoder.weight": [[1.0] * 5] * 7, "encoder.bias": [1.0] * 5, "scale": 1.0}
    parts |= {name.replace("_", "."): part for name, part in changes.items()}
    return json.dumps({"gradients": {name: part for name, part in parts.items() if part != "absent"}}).encode()


def overlapping():
    header = json.dumps(
        {
            "encoder.weight": {"dtype": "F32", "shape": [7, 5], "data_offsets": [0, 140]},
            "encoder.bias": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
            "scale": {"dtype": "F32", "shape": [], "data_offsets": [140, 144]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(144)


def described(shape, data=bytes(144)):
    header = json.dumps({"scale": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def refused(word, status=422, slug="gradients-invalid", **members):
    return {"word": word, "status": status, "slug": slug, "members": members}


def malformed(word):
    return refused(word, 400, "malformed-body")


def invalid(word):
    return refused(word, 422, "request-invalid")


WEIGHT, BIAS, SCALE = SHAPES
FIRST_BAD = save({WEIGHT: torch.ones(7, 5), BIAS: torch.tensor([0, 0, 0, torch.nan, 0]), SCALE: torch.ones(())})

BAD_OCTETS = {  # body, query, problem
    "NaN": (with_value(7, np.nan), {}, refused("weight[1, 2] is nan", parameter=WEIGHT, index=[1, 2], value="nan")),
    "infinity": (with_value(36, -np.inf), {}, refused("-inf", parameter=BIAS, index=[1], value="-inf")),
    "NaN in a scalar": (with_value(40, np.nan), {}, refused("scale is nan", parameter=SCALE, index=[])),
    "NaN after a skip": (with_value(0, np.nan)[:24], {"skip": WEIGHT}, refused("nan", parameter=BIAS, index=[0])),
    "a number too few": (GOOD.tobytes()[:-4], {}, refused("160 bytes", parameter=SCALE, bytes_expected=164)),
    "half a number": (GOOD.tobytes()[:147], {}, refused("encoder.bias[1]", parameter=BIAS, index=[1])),
    "a byte too many": (GOOD.tobytes() + b"\0", {}, refused("goes on", bytes_expected=164)),
    "no body": (b"", {}, refused("0 bytes", parameter=WEIGHT)),
    "unknown skip": (GOOD.tobytes(), {"skip": "encoder.bais"}, refused("'encoder.bias'", parameter="encoder.bais")),
    "unknown query": (GOOD.tobytes(), {"skp": SCALE}, invalid("did you mean 'skip'")),
    "NaN loss": (GOOD.tobytes(), {"loss": "nan"}, invalid("finite")),
    "loss with an underscore": (GOOD.tobytes(), {"loss": "1_0"}, invalid("'1_0'")),
    "two losses": (GOOD.tobytes(), {"loss": ["1", "2"]}, invalid("twice")),
    "loss of words": (GOOD.tobytes(), {"loss": "low"}, invalid("'low'")),
}

BAD_TENSORS = {
    "truncated": (tensors()[:-1], {}, malformed("safetensors")),
    "nonsense": (b"\xff" * 40, {}, malformed("safetensors")),
    "empty": (b"", {}, malformed("safetensors")),
    "overlapping": (overlapping(), {}, malformed("does not lie where")),
    "33 dimensions": (described([1] * 33), {}, malformed("more than 32 dimensions")),
    "an endless dimension": (described([10**18, 10**18]), {}, malformed("does not lie where")),
    "one missing": (tensors(scale=None), {}, refused("?skip=", parameter=SCALE)),
    "one too many": (tensors(bias=torch.ones(5)), {}, refused("'bias'", parameter="bias")),
    "another shape": (tensors(encoder_bias=torch.ones(5, 1)), {}, refused("[5, 1]", parameter=BIAS)),
    "another dtype": (tensors(encoder_bias=torch.ones(5).half()), {}, refused("F16", parameter=BIAS)),
    "NaN": (FIRST_BAD, {}, refused("nan", parameter=BIAS, index=[3])),
    "a skipped one": (tensors(), {"skip": SCALE}, refused("skip", parameter=SCALE)),
}

BAD_JSON = {
    "cut off": (b'{"gradients": {', {}, malformed("not JSON")),
    "not UTF-8": (b'{"gradients": "\xff"}', {}, malformed("not JSON")),
    "a list": (b"[1, 2]", {}, malformed("object")),
    "too deep": (b"[" * 1100, {}, malformed("deep")),
    "a name twice": (b'{"gradients": {"scale": 1, "scale": 2}}', {}, malformed("twice")),
    "no gradients": (b"{}", {}, invalid("gradients")),
    "gradients of the wrong kind": (b'{"gradients": [1]}', {}, invalid("gradients")),
    "an unknown member": (nested()[:-1] + b', "los": 1}', {}, invalid("did you mean 'loss'")),
    "a loss that is no number": (nested()[:-1] + b', "loss": true}', {}, invalid("loss")),
    "a loss that is a string": (nested()[:-1] + b', "loss": "0.5"}', {}, invalid("'0.5'")),
    "two losses": (nested()[:-1] + b', "loss": 1}', {"loss": 2}, invalid("loss")),
    "ragged": (nested(encoder_weight=[[1] * 5] * 6 + [[1]]), {}, refused("a list of 1", parameter=WEIGHT, index=[6])),
    "a list in place of a number": (nested(encoder_bias=[[1]] * 5), {}, refused("a number", parameter=BIAS, index=[0])),
    "a number in place of a list": (nested(encoder_weight=1), {}, refused("a list of 7", parameter=WEIGHT, index=[])),
    "a string": (nested(encoder_bias=[1, "2", 3, 4, 5]), {}, refused("string '2'", parameter=BIAS, index=[1])),
    "a truth": (nested(encoder_bias=[1, 2, True, 4, 5]), {}, refused("true", parameter=BIAS, index=[2])),
    "a null": (nested(scale=None), {}, refused("null", parameter=SCALE)),
    "NaN": (nested(encoder_bias=[1, 2, 3, float("nan"), 5]), {}, refused("not finite", parameter=BIAS, index=[3])),
    "infinity": (nested(scale=float("inf")), {}, refused("not finite", parameter=SCALE)),
    "beyond float32": (nested(scale=1e39), {}, refused("beyond float32", parameter=SCALE)),
    "beyond everything": (nested(scale=10**4000), {}, refused("not finite", parameter=SCALE)),
    "one missing": (nested(scale="absent"), {}, refused("lacks 'scale'", parameter=SCALE)),
    "one too many": (nested(sclae=1), {}, refused("did you mean 'scale'", parameter="sclae")),
    "far too long": (b" " * 200_000 + nested(), {}, refused("bytes", 413, "body-too-large")),
}

BAD_STEPS = {
    **{f"octets: {name}": (OCTETS, *case) for name, case in BAD_OCTETS.items()},
    **{f"safetensors: {name}": (SAFETENSORS, *case) for name, case in BAD_TENSORS.items()},
    **{f"json: {name}": (JSON, *case) for name, case in BAD_JSON.items()},
    "text/csv": ("text/csv", GOOD.tobytes(), {}, refused("'text/csv'", 415, "unsupported-media-type")),
    "no media type": ("", GOOD.tobytes(), {}, refused(OCTETS, 415, "unsupported-media-type")),
}


@pytest.fixture(scope="module")
def pair(http):
    """Two sessions in the same state: one is disturbed, the other is not."""
    parameters = [{"name": name, "shape": list(shape)} for name, shape in SHAPES.items()]
    bodies = [{"optimizer": "adam", "parameters": parameters} for _ in range(2)]
    paths = [http.post("/sessions", json=body).headers["location"].removeprefix("/v1") for body in bodies]
    yield paths
    for path in paths:
        http.delete(path)


def assert_undisturbed(http, pair, step):
    """The disturbed session is where the other one is, and goes the same way."""
    digests = [http.get(f"{path}/digest").json() for path in pair]
    assert digests[0] == digests[1]
    assert digests[0]["step"] == step
    headers = {"Content-Type": OCTETS}
    replies = [http.post(f"{path}/steps/{step}", content=GOOD.tobytes(), headers=headers) for path in pair]
    assert [reply.status_code for reply in replies] == [200, 200], replies[0].text
    assert replies[0].content == replies[1].content


def next_step(http, pair):
    return http.get(pair[1]).json()["next_step"]


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_bad_step_changes_nothing(assert_problem, http, pair, case):
    media_type, body, query, problem = BAD_STEPS[case]
    step = next_step(http, pair)
    headers = {"Content-Type": media_type} if media_type else {}
    reply = http.post(f"{pair[0]}/steps/{step}", content=body, headers=headers, params=query)
    assert_problem(reply, **problem)
    assert_undisturbed(http, pair, step)


@pytest.mark.parametrize("difference", [1, -2, 10**9])
def test_a_wrong_step_names_the_right_one(assert_problem, http, pair, difference):
    while next_step(http, pair) < 2:
        assert_undisturbed(http, pair, next_step(http, pair))
    step = next_step(http, pair)
    reply = http.post(f"{pair[0]}/steps/{step + difference}", content=GOOD.tobytes(), headers={"Content-Type": OCTETS})
    assert_problem(reply, f"send step {step}", 409, "step-conflict", {"next_step": step})
    assert_undisturbed(http, pair, step)


@pytest.mark.parametrize("step", ["-1", "one", "1.0", "٣", "9" * 5000, "99999999999999999"])
def test_a_step_that_is_no_number(assert_problem, http, pair, step):
    reply = http.post(f"{pair[0]}/steps/{step}", content=GOOD.tobytes(), headers={"Content-Type": OCTETS})
    assert_problem(reply, "no step", 422, "request-invalid", {})
    assert_undisturbed(http, pair, next_step(http, pair))


def test_a_step_of_an_unknown_session(assert_problem, http):
    reply = http.post("/sessions/00/steps/0", content=GOOD.tobytes(), headers={"Content-Type": OCTETS})
    assert_problem(reply, "'00'", 404, "session-not-found", {})


def request(server, path, *headers):
    lines = [f"POST /v1{path} HTTP/1.1", "Host: test", f"Content-Type: {OCTETS}", *headers, "", ""]
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall("\r\n".join(lines).encode())
    return connection


def receive(connection):
    with connection, connection.makefile("rb") as stream:
        return stream.read()


@pytest.mark.parametrize("sent", [0, 1, 100, 163])
def test_a_body_that_is_cut_off_is_no_step(server, http, pair, sent):
    step = next_step(http, pair)
    connection = request(server, f"{pair[0]}/steps/{step}", "Content-Length: 164")
    connection.sendall(GOOD.tobytes()[:sent])
    connection.close()
    assert_undisturbed(http, pair, step)


def test_a_chunked_body_that_is_cut_off_is_no_step(server, http, pair):
    step = next_step(http, pair)
    connection = request(server, f"{pair[0]}/steps/{step}", "Transfer-Encoding: chunked")
    connection.sendall(b"a4\r\n" + GOOD.tobytes() + b"\r\n")  # all of it, but no end
    connection.close()
    assert_undisturbed(http, pair, step)


def test_a_body_longer_than_the_session_is_refused_before_it_has_arrived(server, http, pair):
    step = next_step(http, pair)
    connection = request(server, f"{pair[0]}/steps/{step}", "Content-Length: 1000000000", "Connection: close")
    reply = receive(connection)
    assert reply.startswith(b"HTTP/1.1 422 ")
    assert b"urn:optserve:problem:gradients-invalid" in reply
    assert_undisturbed(http, pair, step)


def test_a_chunked_body_longer_than_the_session_is_refused_as_soon_as_it_is(server, http, pair):
    step = next_step(http, pair)
    connection = request(server, f"{pair[0]}/steps/{step}", "Transfer-Encoding: chunked", "Connection: close")
    connection.sendall(b"a5\r\n" + GOOD.tobytes() + b"\0\r\n")  # and no end
    reply = receive(connection)
    assert reply.startswith(b"HTTP/1.1 422 ")
    assert b"gradients-invalid" in reply
    assert_undisturbed(http, pair, step)


def test_a_chunked_body_that_ends_too_early_is_refused(assert_problem, http, pair):
    step = next_step(http, pair)
    headers = {"Content-Type": OCTETS}
    reply = http.post(f"{pair[0]}/steps/{step}", content=iter([GOOD.tobytes()[:100]]), headers=headers)
    assert_problem(reply, "100 bytes", 422, "gradients-invalid", {"parameter": WEIGHT, "index": [5, 0]})
    assert_undisturbed(http, pair, step)


def test_a_chunked_body_is_a_body(http, pair):
    step = next_step(http, pair)
    pieces = [GOOD.tobytes()[start : start + 50] for start in range(0, 164, 50)]
    headers = {"Content-Type": OCTETS}
    replies = [http.post(f"{path}/steps/{step}", content=iter(pieces), headers=headers) for path in pair]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert_undisturbed(http, pair, step + 1)


def test_bytes_behind_the_body_are_no_part_of_the_step(server, http, pair):
    step = next_step(http, pair)
    connection = request(server, f"{pair[0]}/steps/{step}", "Content-Length: 164")
    connection.sendall(GOOD.tobytes() + b"\0\1\2 nonsense\r\n\r\n")
    reply = receive(connection)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"application/problem+json" in reply
    http.post(f"{pair[1]}/steps/{step}", content=GOOD.tobytes(), headers={"Content-Type": OCTETS})
    assert_undisturbed(http, pair, step + 1)


def test_a_shape_whose_product_takes_long_is_refused_at_once(new_loop, assert_problem):
    loop = new_loop("adam", {"scale": (500_000,)})
    started = time.perf_counter()
    reply = loop.post(0, described([10**18] * 700), SAFETENSORS)
    assert_problem(reply, "more than 32 dimensions", 400, "malformed-body")
    assert time.perf_counter() - started < 2


def test_values_that_no_step_has_are_refused_before_they_are_made(new_loop, assert_problem):
    """An empty list has two bytes in a body and sixty in memory; an entry of a header thirty times its bytes."""
    loop = new_loop("adam", {"scale": (500_000,)})
    many = b'{"gradients": {"scale": [' + b"[]," * 4_000_000 + b"[]]}}"
    assert_problem(loop.post(0, many, JSON), "more values than", 400, "malformed-body")
    header = json.dumps(
        {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    ).encode()
    names = struct.pack("<Q", len(header)) + header
    assert_problem(loop.post(0, names, SAFETENSORS), "header has", 400, "malformed-body")


def test_a_name_may_have_what_separates_values(new_loop):
    name = "[{," * 85
    loop = new_loop("adam", {name: (2,), "b": ()})
    reply = loop.post(0, json.dumps({"gradients": {name: [1, 2], "b": 3}}).encode(), JSON)
    assert reply.status_code == 200
