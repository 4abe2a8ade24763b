"""Requests beside steps that cannot be served: each a problem that says what is wrong."""

import json
import socket
import time

import httpx
import pytest

JSON = "application/json"

BAD_SHAPES = {
    "zero": ([{"name": "w", "shape": [3, 0]}], "w", "/parameters/0/shape"),
    "negative": ([{"name": "a", "shape": [1]}, {"name": "b", "shape": [-2]}], "b", "/parameters/1/shape"),
    "10¹² elements": ([{"name": "huge", "shape": [10**6, 10**6]}], "huge", "/parameters/0/shape"),
    "10¹² elements in all": ([{"name": f"w{n}", "shape": [10**8]} for n in range(10_000)], "w2", "/parameters/2/shape"),
    "a dimension of 4000 digits": ([{"name": "huge", "shape": [10**4000]}], "huge", "/parameters/0/shape"),
    "too many dimensions": ([{"name": "deep", "shape": [1] * 33}], "deep", "/parameters/0/shape"),
    "a name twice": ([{"name": "w", "shape": [1]}, {"name": "w", "shape": [2]}], "w", "/parameters/1/name"),
    "an empty name": ([{"name": "", "shape": [1]}], "", "/parameters/0/name"),
    "a long name": ([{"name": "w" * 257, "shape": [1]}], "w" * 256, "/parameters/0/name"),
    "an unprintable name": ([{"name": "a\nb", "shape": [1]}], "a\nb", "/parameters/0/name"),
}


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_parameters_that_cannot_be(assert_problem, http, case):
    parameters, name, pointer = BAD_SHAPES[case]
    reply = http.post("/sessions", json={"optimizer": "adam", "parameters": parameters})
    assert_problem(reply, "", 422, "request-invalid", {"parameter": name})
    assert [error["pointer"] for error in reply.json()["errors"]] == ["#" + pointer]


MANY = [{"name": str(number), "shape": [1]} for number in range(10_001)]
DEEP = json.loads("[" * 900 + "]" * 900)
REQUEST, HYPERPARAMETERS = "request-invalid", "hyperparameters-invalid"

BAD_SESSIONS = {  # the key that is changed, its value, the type of the problem, what the problem names
    "no parameters": ("parameters", [], REQUEST, "#/parameters"),
    "too many parameters": ("parameters", MANY, REQUEST, "#/parameters"),
    "a shape of the wrong kind": ("parameters", [{"name": "w", "shape": "3"}], REQUEST, "#/parameters/0/shape"),
    "a dimension that is a truth value": ("parameters", [{"name": "w", "shape": [True]}], REQUEST, "/shape/0"),
    "a dimension that is a string": ("parameters", [{"name": "w", "shape": ["2"]}], REQUEST, "/shape/0"),
    "a dimension with a fraction": ("parameters", [{"name": "w", "shape": [3.0]}], REQUEST, "/shape/0"),
    "a time to live that is a string": ("ttl_seconds", "60", REQUEST, "#/ttl_seconds"),
    "a time to live that is a truth value": ("ttl_seconds", True, REQUEST, "#/ttl_seconds"),
    "a horizon that is a truth value": ("horizon", True, REQUEST, "#/horizon"),
    "half a dimension": ("parameters", [{"name": "w", "shape": [1.5]}], REQUEST, "#/parameters/0/shape/0"),
    "parameters of the wrong kind": ("parameters", None, REQUEST, "#/parameters"),
    "an unknown key": ("optimiser", "adam", REQUEST, "#/optimiser"),
    "an unknown dtype": ("dtype", "float64", REQUEST, "#/dtype"),
    "a time to live of 0": ("ttl_seconds", 0, REQUEST, "#/ttl_seconds"),
    "an endless time to live": ("ttl_seconds", 1e300, REQUEST, "#/ttl_seconds"),
    "a time to live that is no number": ("ttl_seconds", float("nan"), REQUEST, "#/ttl_seconds"),
    "a horizon of 0": ("horizon", 0, REQUEST, "#/horizon"),
    "a long label": ("label", "x" * 257, REQUEST, "#/label"),
    "an unprintable label": ("label", "\ud800", REQUEST, "#/label"),
    "an unknown hyperparameter": ("hyperparameters", {"beta": 1}, HYPERPARAMETERS, "'betas'"),
    "a hyperparameter out of range": ("hyperparameters", {"betas": [1, 1]}, HYPERPARAMETERS, "betas[0]"),
    "a hyperparameter nested deeply": ("hyperparameters", {"lr": DEEP}, HYPERPARAMETERS, "lr"),
    "a hyperparameter beyond numbers": ("hyperparameters", {"lr": 10**400}, HYPERPARAMETERS, ""),
}


@pytest.mark.parametrize("case", BAD_SESSIONS)
def test_sessions_that_cannot_be(assert_problem, http, case):
    key, value, slug, place = BAD_SESSIONS[case]
    text = json.dumps({"optimizer": "adam", "parameters": [{"name": "w", "shape": [1]}], key: value})
    before = len(http.get("/sessions", params={"limit": 1000}).json()["items"])
    reply = http.post("/sessions", content=text, headers={"Content-Type": JSON})
    assert_problem(reply, "", 422, slug)
    assert place in json.dumps(reply.json()), reply.text
    assert len(http.get("/sessions", params={"limit": 1000}).json()["items"]) == before


def test_a_learned_optimizer_takes_no_hyperparameters(assert_problem, http, learned):
    body = {"optimizer": learned, "parameters": [{"name": "w", "shape": [1]}], "hyperparameters": {"lr": 1}}
    assert_problem(http.post("/sessions", json=body), "'lr'", 422, "hyperparameters-invalid", {})


@pytest.mark.parametrize(
    ("reference", "slug", "word"),
    [
        ("adan", "optimizer-not-found", "adam"),
        ("adam@7", "version-not-found", "7"),
        ("adam@best-one", "alias-not-found", "best-one"),
    ],
)
def test_an_optimizer_that_is_not_there(assert_problem, http, reference, slug, word):
    body = {"optimizer": reference, "parameters": [{"name": "w", "shape": [1]}]}
    assert_problem(http.post("/sessions", json=body), word, 404, slug)


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "slug"),
    [
        ("GET", "/nowhere", b"", {}, 404, "not-found"),
        ("GET", "/sessions/", b"", {}, 404, "not-found"),
        ("PUT", "/sessions", b"", {}, 405, "method-not-allowed"),
        ("POST", "/sessions", b"{", {"Content-Type": JSON}, 400, "malformed-body"),
        ("POST", "/sessions", b"\xff", {"Content-Type": JSON}, 400, "malformed-body"),
        ("POST", "/sessions", b"[" * 100_000, {"Content-Type": JSON}, 400, "malformed-body"),
        ("POST", "/sessions", b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        ("POST", "/sessions", b"{}", {}, 415, "unsupported-media-type"),
        ("POST", "/sessions", b"", {"Content-Type": JSON}, 422, "request-invalid"),
        ("POST", "/sessions", b" " * (5 << 20), {"Content-Type": JSON}, 413, "body-too-large"),
        ("GET", "/sessions?limit=0", b"", {}, 422, "request-invalid"),
        ("GET", "/sessions?limit=many", b"", {}, 422, "request-invalid"),
        ("GET", "/sessions?cursor=x", b"", {}, 422, "request-invalid"),
        ("GET", "/sessions/none", b"", {}, 404, "session-not-found"),
        ("GET", "/sessions/%ff%00", b"", {}, 404, "session-not-found"),
        ("DELETE", "/sessions/none", b"", {}, 404, "session-not-found"),
        ("GET", "/sessions/none/state", b"", {}, 404, "session-not-found"),
        ("GET", "/sessions/none/digest", b"", {}, 404, "session-not-found"),
        ("PUT", "/sessions/none/checkpoints/a", b"", {}, 404, "session-not-found"),
    ],
)
def test_every_error_is_a_problem(assert_problem, http, method, path, content, headers, status, slug):
    request = httpx.Request(method, f"{http.base_url}{path.lstrip('/')}", content=content, headers=headers)
    assert_problem(http.send(request), "", status, slug)


def test_what_is_no_http_is_a_problem_too(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        reply = connection.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in reply


def test_a_list_of_too_many_things_is_refused_at_once(assert_problem, http):
    started = time.perf_counter()
    reply = http.post("/sessions", json={"parameters": [0] * 100_000})
    assert_problem(reply, "at most 10000", 422, "request-invalid")
    assert [error["pointer"] for error in reply.json()["errors"]] == ["#/parameters"]
    reply = http.post("/sessions", json={"parameters": [{"name": "w", "shape": ["x"] * 700_000}]})
    assert_problem(reply, "more members", 422, "request-invalid")
    assert time.perf_counter() - started < 1


def test_a_problem_tells_of_the_first_faults_only(assert_problem, http):
    reply = http.post("/sessions", json={"parameters": [0] * 1000})
    assert_problem(reply, "#/parameters/0", 422, "request-invalid")
    assert len(reply.json()["errors"]) == 20


def exchange(server, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        return connection.makefile("rb").read()


def step_request(loop, step, body):
    head = (
        f"POST /v1{loop.path}/steps/{step} HTTP/1.1\r\nHost: test\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: 8\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("rest", [bytes(4), b"POST /v1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno length"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_before_something_that_is_no_http_has_its_reply(server, new_loop, rest, steps):
    loop = new_loop("adam", {"w": (2,)})
    requests = b"".join(step_request(loop, step, bytes(8)) for step in range(steps))
    replies = exchange(server, requests + rest).split(b"HTTP/1.1 ")[1:]
    assert [reply[:3] for reply in replies] == [b"200"] * steps + [b"400"]
    assert b"connection: close" in replies[-1]
    assert loop.get()["next_step"] == steps


def test_a_request_whose_body_is_no_http_is_refused_at_once(server, new_loop):
    loop = new_loop("adam", {"w": (2,)})
    chunked = step_request(loop, 0, b"no length").replace(b"Content-Length: 8", b"Transfer-Encoding: chunked")
    assert [reply[:3] for reply in exchange(server, chunked).split(b"HTTP/1.1 ")[1:]] == [b"400"]
    assert loop.get()["next_step"] == 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/sessions", "GET, POST"),
        ("PUT", "/sessions/none", "DELETE, GET, PATCH"),
        ("POST", "/sessions/none/state", "GET, PUT"),
    ],
)
def test_a_method_that_is_not_taken_is_told_which_are(http, assert_problem, method, path, allowed):
    reply = http.request(method, path)
    assert_problem(reply, allowed, 405, "method-not-allowed")
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_answers_head_as_get_without_the_body(server, path):
    head, get = httpx.head(server.url + path), httpx.get(server.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"] == JSON
