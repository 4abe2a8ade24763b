"""A corpus of hostile requests: each gets a documented problem or a closed connection, and leaves nothing behind.

The whole of it is sent several times. Then a session that it was aimed at steps as one that was left alone, and the
server has no more memory, file handles, sessions or threads than after the first time.
"""

import gzip
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from optserve.wire import problems, tensors
from optserve.wire.problems import MEDIA_TYPE

ROUNDS = int(os.environ.get("FUZZ_EXAMPLES", "0")) // 10 or 2
OCTETS, SAFETENSORS, JSON = "application/octet-stream", "application/x-safetensors", "application/json"
PARAMETERS = [{"name": "w", "shape": [4, 3]}, {"name": "b", "shape": [3]}]
GRADIENTS = np.linspace(-1, 1, 15, dtype=np.float32)
REPLY_BYTES = 64 << 10
"""That a refusal has at most, whatever came."""


def tensor_file(header, body=bytes(60), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(start, stop, shape=(4, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


W, B = entry(0, 48), entry(48, 60, (3,))

FILES = {
    "empty": b"",
    "less than a length": b"\x01\x02",
    "a header beyond the end": tensor_file({"w": W, "b": B}, length=10**6),
    "a header of 2**63": tensor_file({"w": W, "b": B}, length=2**63),
    "a header of nothing": tensor_file(b""),
    "a header that is a list": tensor_file(b"[1]"),
    "a header that is nested": tensor_file(b'{"w":' * 5000),
    "a header of numbers without end": tensor_file(b'{"w":' + b"9" * 5000 + b"}"),
    "a header not in UTF-8": tensor_file(b'{"\xff":1}'),
    "a name twice": tensor_file(json.dumps({"w": W, "b": B})[:-1].encode() + b', "w":' + json.dumps(W).encode() + b"}"),
    "overlapping": tensor_file({"w": W, "b": entry(40, 52, (3,))}),
    "a gap": tensor_file({"w": W, "b": entry(52, 64, (3,))}, bytes(64)),
    "beyond the end": tensor_file({"w": W, "b": entry(48, 6000, (3,))}),
    "negative": tensor_file({"w": entry(-48, 0), "b": entry(0, 12, (3,))}),
    "backwards": tensor_file({"w": entry(48, 0), "b": B}),
    "beyond 64 bits": tensor_file({"w": entry(0, 2**70), "b": B}),
    "fractions": tensor_file({"w": entry(0.5, 48.5), "b": B}),
    "another size than the shape's": tensor_file({"w": entry(0, 48, (4, 4)), "b": B}),
    "another size than the dtype's": tensor_file({"w": entry(0, 48, dtype="F64"), "b": B}),
    "an unknown dtype": tensor_file({"w": entry(0, 48, dtype="PICKLE"), "b": B}),
    "an endless shape": tensor_file({"w": entry(0, 48, [10**18] * 30), "b": B}),
    "a shape of zeros and giants": tensor_file({"w": entry(0, 0, [0, 2**62]), "b": entry(0, 12, (3,))}, bytes(12)),
    "a parent folder": tensor_file({"../../w": W, "b": B}),
    "a zero character": tensor_file({"w\0": W, "b": B}),
    "a picture": tensor_file({"🦆": W, "b": B}),
    "a long name": tensor_file({"w" * 100_000: W, "b": B}),
    "a name of 10 MB": tensor_file({"w" * 10_000_000: W, "b": B}),
    "many names": tensor_file({str(n): entry(0, 0, [0]) for n in range(3000)}, b""),
    "metadata of numbers": tensor_file({"__metadata__": {"step": 1}, "w": W, "b": B}),
    "metadata that is a list": tensor_file({"__metadata__": [], "w": W, "b": B}),
    "NaN": tensor_file({"w": W, "b": B}, np.full(15, np.nan, "<f4").tobytes()),
    "a pickle": b"cos\nsystem\n(S'touch executed'\ntR.",
    "a gzip bomb": gzip.compress(bytes(10_000_000)),
}  # fmt: skip

TEXTS = {
    "cut off": b'{"gradients": {"w": [[1, 2',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "NaN": b'{"gradients": {"w": [[NaN, 1, 2], [0,0,0], [0,0,0], [0,0,0]], "b": [0,0,0]}}',
    "infinity": b'{"gradients": {"w": [[0,0,0], [0,0,0], [0,0,0], [0,0,0]], "b": [0,0,-Infinity]}}',
    "a loss of NaN": b'{"gradients": {"w": [[0,0,0], [0,0,0], [0,0,0], [0,0,0]], "b": [0,0,0]}, "loss": NaN}',
    "a number of 5000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "beyond floats": b'{"ttl_seconds": 1e999, "parameters": [{"name": "w", "shape": [1]}]}',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "half a character": b'{"name": "\\ud800", "optimizer": "\\ud800", "optimizers": ["\\ud800"], "scope": "client"}',
    "half a character in a session": b'{"optimizer": "\\udfff", "parameters": [{"name": "w", "shape": [1]}]}',
    "half a character in a plan": b'{"optimizers": ["\\udfff"]}',
    "a zero character": b'{"name": "\\u0000", "scope": "client"}',
    "a zero character in a session": b'{"optimizer": "\\u0000", "parameters": [{"name": "w", "shape": [1]}]}',
    "a zero character in a plan": b'{"optimizers": ["\\u0000"], "tasks": [{"family": "\\u0000"}]}',
    "a name twice": b'{"gradients": {"w": 1, "w": 2}}',
    "a long name": json.dumps({"name": "w" * 300_000, "scope": "client"}).encode(),
    "a long key": json.dumps({"w" * 300_000: 1}).encode(),
    "a long checkpoint": json.dumps({"checkpoint": "../" * 100_000}).encode(),
    "a long optimizer": json.dumps({"optimizer": "../" * 100_000, "parameters": PARAMETERS}).encode(),
    "many values": b'{"parameters": [' + b"1," * 100_000 + b"1]}",
    "null": b"null",
    "a text": b'"../../etc/passwd"',
    "nothing": b"",
    "a prototype": b'{"__proto__": {"admin": true}, "constructor": {}, "__class__": "os.system"}',
}

ROUTES_OF_TEXT = [
    ("POST", "/sessions"), ("POST", "{session}/steps/{step}"), ("PATCH", "{session}"), ("POST", "{session}/restore"),
    ("PUT", "{session}/parameters"), ("PUT", "/optimizers/rnnprop/aliases/x"), ("POST", "/meta-training-runs"),
    ("POST", "/evaluations"), ("POST", "/api-keys"), ("POST", "/meta-training-runs/none/resume"),
]  # fmt: skip
ROUTES_OF_FILES = [
    ("POST", "{session}/steps/{step}"), ("PUT", "{session}/state"), ("PUT", "{session}/parameters"),
    ("POST", "/optimizers/new/versions"),
]  # fmt: skip
PATHS = [
    "/sessions/%00", "/sessions/%ff%fe", "/sessions/..%2f..%2fetc", "/sessions/%2e%2e/x", "/sessions/" + "a" * 10_000,
    "/sessions/%F0%9F%A6%86", "/optimizers/%00", "/optimizers/%ed%a0%80", "/optimizers/" + "9" * 5000,
    "/optimizers/rnnprop/versions/" + "9" * 4000, "/optimizers/rnnprop/versions/-1", "/optimizers/rnnprop/versions/1e1",
    "/optimizers/rnnprop/versions/1/diff?with=%00@1", "/optimizers/rnnprop/versions/1/diff?with=x@99999999999",
    "/meta-training-runs/%00", "/meta-training-runs?cursor=%00", "/meta-training-runs?status=%00",
    "/evaluations/%00",
    "/evaluations?cursor=99999999999999999999", "/api-keys/%00", "/api-keys/99999999999999999999",
    "/api-keys?cursor=-1",
    "/sessions?cursor=%00", "/sessions?cursor=" + "9" * 5000, "/sessions?limit=1&limit=0", "/sessions?limit=9e99",
    "/optimizers?cursor=..%2f", "/tasks?limit=-0", "{session}/checkpoints?limit=0", "{session}/history/x",
    "/%2e%2e/%2e%2e/etc/passwd", "/..;/admin", "//", "/sessions//", "/sessions/x/state/", "/%",
]  # fmt: skip
QUERIES = ["loss=1&loss=2", "loss=", "loss=%00", "loss=nan", "skip=%00", "skip=" + "x" * 50_000, "skip=w%ff", "x=1",
           "&".join(["skip=b"] * 9000), "loss=0x10", "loss=1e999", "%00=%00", "=", "skip", ";loss=1"]  # fmt: skip


def requests():
    """What the corpus consists of: method, path, media type, body, headers."""
    for place, text in enumerate(TEXTS.values()):  # each to the busiest two routes, and to half of the others
        routes = ROUTES_OF_TEXT[:2] + ROUTES_OF_TEXT[2 + place % 2 :: 2]
        yield from ((method, path, JSON, text, {}) for method, path in routes)
    for data in FILES.values():
        yield from ((method, path, SAFETENSORS, data, {}) for method, path in ROUTES_OF_FILES)
        yield "POST", "{session}/steps/{step}", OCTETS, data, {}
    yield from (("GET", path, "", b"", {}) for path in PATHS)
    good = GRADIENTS.tobytes()
    yield from (("POST", f"{{session}}/steps/{{step}}?{query}", OCTETS, good, {}) for query in QUERIES)
    for step in ("-1", "1.0", "%00", "9" * 4000, "99999999", "%D9%A3"):
        yield "POST", f"{{session}}/steps/{step}", OCTETS, good, {}
    for name in ("%00", "a%0ab", "x" * 300, "%ff"):
        yield "PUT", f"{{session}}/checkpoints/{name}", "", b"", {}
    for header in ("Idempotency-Key", "Last-Event-ID", "X-Request-Id", "Authorization", "Cookie", "Range"):
        yield "POST", "/sessions", "text/csv", b"x", {header: "\x7f;" * 500}
    yield "POST", "{session}/steps/{step}", "a" * 5000, good, {}
    yield "POST", "{session}/steps/{step}", "application/json; charset=utf-7", good, {}
    yield "POST", "{session}/steps/{step}", OCTETS, gzip.compress(good), {"Content-Encoding": "gzip"}


RAW = [
    b"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {type}\r\nContent-Length: 60\r\n\r\n" + bytes(30),  # cut off
    b"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {type}\r\nContent-Length: 6000000000000\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {type}\r\nTransfer-Encoding: chunked\r\n\r\n3c\r\n" + bytes(60),
    b"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {type}\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"
    + bytes(99),
    b"POST {path} HTTP/1.1\r\nContent-Type: {type}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {type}\r\nContent-Length: 2\r\n\r\n" + bytes(5000),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    b"\x16\x03\x01\x02\x00" + bytes(500),
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"%00" * 50_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + b"garbage\r\n\r\n",
    b"",
]


class Aimed:
    """A server that the corpus is sent to, at a session of its own."""

    def __init__(self, server):
        self.server = server
        self.http = httpx.Client(base_url=f"{server.url}/v1", timeout=60)
        self.paths = [self._open() for _ in range(2)]  # the session that is aimed at, and one that is left alone
        self.taken = 0

    def _open(self):
        reply = self.http.post("/sessions", json={"optimizer": "adam", "parameters": PARAMETERS})
        assert reply.status_code == 201, reply.text
        return f"/sessions/{reply.json()['id']}"

    def close(self):
        for path in self.paths:
            self.http.delete(path)
        self.http.close()

    def send_everything(self):
        for method, path, media_type, body, headers in requests():
            address = f"{self.server.url}/v1" + path.replace("{session}", self.paths[0]).replace(
                "{step}", str(self.taken)
            )
            self._send(method, address, media_type, body, headers)
        for raw in RAW:
            for media_type in (OCTETS, JSON, SAFETENSORS):
                self._send_raw(raw.replace(b"{type}", media_type.encode()))

    def _send(self, method, address, media_type, body, headers):
        headers = {**({"Content-Type": media_type} if media_type else {}), **headers}
        reply = self.http.request(method, address, content=body, headers=headers)
        about = (method, address[:200], media_type[:40], body[:80], reply.status_code, reply.text[:300])
        assert 400 <= reply.status_code < 500 or reply.status_code == 507, about
        assert reply.headers["content-type"] == MEDIA_TYPE, about
        assert problems.BY_URN[reply.json()["type"]].status == reply.status_code, about
        assert len(reply.content) <= REPLY_BYTES, about

    def _send_raw(self, raw):
        path = f"/v1{self.paths[0]}/steps/{self.taken}"
        received = b""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            with suppress(ConnectionError):
                connection.sendall(raw.replace(b"{path}", path.encode()))
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while data := connection.recv(1 << 16):
                    received += data
        statuses = [int(one[:3]) for one in received.split(b"HTTP/1.1 ")[1:]]
        assert all(200 <= status < 500 for status in statuses), (raw[:200], received[:300])

    def step(self):
        """Both sessions take the same step, and answer the same."""
        replies = [
            self.http.post(f"{path}/steps/{self.taken}", content=GRADIENTS.tobytes(), headers={"Content-Type": OCTETS})
            for path in self.paths
        ]
        assert [reply.status_code for reply in replies] == [200, 200], replies[0].text
        assert replies[0].content == replies[1].content
        digests = [self.http.get(f"{path}/digest").json() for path in self.paths]
        assert digests[0] == digests[1]
        self.taken += 1

    def held(self):
        """What the server holds: memory in MiB, file handles, threads, sessions."""
        process = Path(f"/proc/{self.server.process.pid}")
        time.sleep(1.5)  # for connections to be closed, and for what is done once a second
        pages = int((process / "statm").read_text().split()[1])
        sessions = len(self.http.get("/sessions", params={"limit": 1000}).json()["items"])
        return {
            "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "handles": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
            "sessions": sessions,
        }


@pytest.mark.timeout(300 + 30 * ROUNDS)
def test_nothing_of_the_corpus_is_served_or_stays(tmp_path, run_server, postgresql):
    # PostgreSQL takes fewer texts and numbers than SQLite.
    with run_server(tmp_path, "--state-memory", "256MiB", "--database-url", postgresql()) as server:
        aimed = Aimed(server)
        aimed.step()
        aimed.send_everything()
        aimed.step()
        before = aimed.held()
        for _ in range(ROUNDS):
            aimed.send_everything()
            aimed.step()
        after = aimed.held()
        assert after["MiB"] - before["MiB"] < 24, (before, after)
        assert after["handles"] <= before["handles"] + 2, (before, after)
        assert after["threads"] <= before["threads"] + 4, (before, after)
        assert after["sessions"] == before["sessions"] == 2
        aimed.close()
        log = [json.loads(line) for line in (server.data_dir.parent / "stderr").read_text().splitlines()]
        assert [line for line in log if line["level"] == "error"][:1] == []


def test_mutated_states_are_refused_or_put_and_nothing_else(server):
    """What `PUT state` takes, `GET state` gives."""
    generator = np.random.default_rng(0)
    aimed = Aimed(server)
    aimed.step()
    state = f"{aimed.paths[0]}/state"
    good = aimed.http.get(state).content
    for _ in range(200):
        data = bytearray(good)
        for place in generator.integers(0, len(good), generator.integers(1, 4)):
            data[place] = generator.integers(0, 256)
        cut = generator.integers(0, 4)
        body = bytes(data[: len(data) - cut])
        reply = aimed.http.put(state, content=body, headers={"Content-Type": SAFETENSORS})
        assert reply.status_code in (200, 400, 409), reply.text
        if reply.status_code == 200:
            put, _ = tensors.decode(body)
            found, _ = tensors.decode(aimed.http.get(state).content)
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in put.items()
            }
    aimed.close()
