"""Training loops that do what a number says, whatever happens to the server, and write down every reply."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

OCTETS, TENSORS, JSON = "application/octet-stream", "application/x-safetensors", "application/json"
_LOST = (httpx.TransportError, httpx.StreamError)


@dataclass(frozen=True)
class Kind:
    """What a loop trains with."""

    optimizer: str
    coordinates: int
    form: str = OCTETS
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    guard: dict[str, Any] | None = None


KINDS = [
    Kind("adam", 1_500),
    Kind("lstm", 700, guard={"max_update_rms": 0.04, "patience": 4}),  # which refuses about a third of its updates
    Kind("rnnprop", 1_500),
    Kind("momentum", 10, JSON, {"lr": 0.1}),
    Kind("adamw", 300, TENSORS),
    Kind("adam", 5_000, dtype="float16"),
    Kind("adam", 150_000),  # beside the event loop, and past the page cache
    Kind("rnnprop", 20_000),
]
SMALLEST_STEP_BACK, LARGEST_STEP_BACK = 0, 50


class Loop(threading.Thread):
    """One training loop: operation after operation, each sent until it is answered.

    What it does is decided by `seed` alone, so that the same loop can be run again undisturbed. `trace` has for each
    operation its name and the digest of the reply.
    """

    def __init__(self, url: str, seed: int, operations: int | None = None) -> None:
        super().__init__(daemon=True)
        self.kind = KINDS[seed % len(KINDS)]
        self.trace: list[tuple[str, str]] = []
        self.lost = 0
        self.steps = 0
        self.answered = 0.0
        self.failure: str | None = None
        self.over = threading.Event()
        self._operations = operations
        self._random = random.Random(seed)
        self._seed = seed
        self._url = url
        self._next_step = 0
        self._taken = 0  # steps ever, which number the gradients
        self._saved: dict[str, int] = {}
        self._oldest = 0  # the oldest step that can be gone back to
        self._last: tuple[int, bytes, str, str] | None = None
        self._keys = 0

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self._url + "/v1", timeout=120) as self._http:
                self._session = self._create()
                while not self.over.is_set() and len(self.trace) != self._operations:
                    name, operation = self._choose()
                    self.trace.append((name, operation()))
        except Exception as error:
            self.failure = f"{self.kind}: after {len(self.trace)} operations: {type(error).__name__}: {error}"
            raise

    # --- what it does -------------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[str, Callable[[], str]]:
        dice = self._random.random()
        for share, name, operation, possible in (
            (0.05, "again", self._again, self._last is not None),
            (0.02, "other", self._other, self._last is not None),
            (0.02, "digest", self._digest, True),
            (0.01, "change", self._change, self.kind.optimizer == "adam"),
            (0.015, "save", self._save, True),
            (0.01, "restore", self._restore, bool(self._saved)),
            (0.01, "rewind", self._rewind, True),
            (0.005, "fork", self._fork, True),
        ):
            if dice < share and possible:
                return name, operation
            dice -= share
        return "step", self._step

    def _step(self) -> str:
        body = self._gradients(self._taken)
        query = f"?loss={1 / (1 + self._taken)!r}" if self._taken % 3 else ""
        reply = self._send("POST", f"{self._path}/steps/{self._next_step}{query}", body, self.kind.form)
        self._require(reply, 200)
        digest = _digest(reply.content, reply.headers)
        self._last = (self._next_step, body, query, digest)
        self._taken += 1
        self._next_step += 1
        self.steps += 1
        return digest

    def _again(self) -> str:
        """The last step sent once more has the same reply, byte for byte."""
        assert self._last is not None
        step, body, query, digest = self._last
        reply = self._send("POST", f"{self._path}/steps/{step}{query}", body, self.kind.form)
        self._require(reply, 200)
        if _digest(reply.content, reply.headers) != digest:
            raise AssertionError(f"step {step} sent again got other bytes")
        return digest

    def _other(self) -> str:
        """The last step with other gradients is refused."""
        assert self._last is not None
        step, _, query, _ = self._last
        body = self._gradients(self._taken + 1_000_000)
        reply = self._send("POST", f"{self._path}/steps/{step}{query}", body, self.kind.form)
        self._require(reply, 409)
        return str(reply.json()["next_step"])

    def _digest(self) -> str:
        reply = self._send("GET", f"{self._path}/digest")
        self._require(reply, 200)
        return reply.text

    def _change(self) -> str:
        changes = {"hyperparameters": {"betas": [self._random.uniform(0.8, 0.95), 0.99]}}
        reply = self._send("PATCH", self._path, json.dumps(changes).encode(), JSON)
        self._require(reply, 200)
        return json.dumps(reply.json()["hyperparameters"])

    def _save(self) -> str:
        name = f"c{self._random.randrange(3)}"
        reply = self._send("PUT", f"{self._path}/checkpoints/{name}")
        self._require(reply, 200)
        self._saved[name] = self._next_step
        return str(reply.json()["step"])

    def _restore(self) -> str:
        name = self._random.choice(sorted(self._saved))
        self._go_back({"checkpoint": name}, self._saved[name])
        self._oldest = self._next_step
        return str(self._next_step)

    def _rewind(self) -> str:
        step = self._random.randint(max(self._oldest, self._next_step - LARGEST_STEP_BACK), self._next_step)
        self._go_back({"step": step}, step)
        return str(self._next_step)

    def _go_back(self, where: dict[str, Any], step: int) -> None:
        reply = self._send("POST", f"{self._path}/restore", json.dumps(where).encode(), JSON)
        self._require(reply, 200)
        if reply.json()["next_step"] != step:
            raise AssertionError(f"restoring {where} led to step {reply.json()['next_step']}, not {step}")
        self._next_step, self._last = step, None

    def _fork(self) -> str:
        """Go on with a copy, and delete the original."""
        self._keys += 1
        key = {"Idempotency-Key": f"fork-{self._seed}-{self._keys}"}
        reply = self._send("POST", f"{self._path}/fork", b"{}", JSON, key)
        self._require(reply, 201)
        original, self._session = self._path, reply.json()["id"]
        if reply.json()["next_step"] != self._next_step:
            raise AssertionError(f"the fork is at step {reply.json()['next_step']}, not {self._next_step}")
        self._require(self._send("DELETE", original), 204, 404)
        self._saved, self._last, self._oldest = {}, None, self._next_step
        return self._digest()

    def _create(self) -> str:
        kind = self.kind
        half = kind.coordinates // 2
        shapes = [{"name": "w", "shape": [half]}, {"name": "b", "shape": [kind.coordinates - half]}]
        body = {
            "optimizer": kind.optimizer,
            "parameters": shapes,
            "dtype": kind.dtype,
            "hyperparameters": kind.hyperparameters,
            "guard": kind.guard,
        }
        key = {"Idempotency-Key": f"loop-{self._seed}"}
        reply = self._send("POST", "/sessions", json.dumps(body).encode(), JSON, key)
        self._require(reply, 201)
        session: str = reply.json()["id"]
        if kind.optimizer == "adamw":
            theta = np.linspace(-1, 1, kind.coordinates, dtype=np.float32).tobytes()
            self._require(self._send("PUT", f"/sessions/{session}/parameters", theta, OCTETS), 204, 200)
        return session

    # --- how it is sent -----------------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/sessions/{self._session}"

    def _send(
        self, method: str, path: str, body: bytes = b"", form: str = "", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a request until it is answered: 503 is no answer, nor is a connection that breaks."""
        sent = {**({"Content-Type": form} if form else {}), **(headers or {})}
        while True:
            try:
                reply = self._http.request(method, path, content=body, headers=sent)
            except _LOST:
                self.lost += 1
            else:
                if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.answered = time.monotonic()
                    return reply
            time.sleep(0.01)

    def _require(self, reply: httpx.Response, *statuses: int) -> None:
        if reply.status_code not in statuses:
            raise AssertionError(f"{reply.request.method} {reply.request.url.path}: {reply.status_code} {reply.text}")

    def _gradients(self, number: int) -> bytes:
        numbers = np.random.default_rng([self._seed, number]).normal(size=self.kind.coordinates)
        values = numbers.astype(self.kind.dtype)
        if self.kind.form == OCTETS:
            return values.tobytes()
        half = len(values) // 2
        parts = {"w": values[:half], "b": values[half:]}
        if self.kind.form == JSON:
            return json.dumps({"gradients": {name: part.tolist() for name, part in parts.items()}}).encode()
        from safetensors.numpy import save

        return save(parts)


def _digest(content: bytes, headers: Mapping[str, str]) -> str:
    """Of a reply's updates, and of what the guard did."""
    return hashlib.sha256(content + headers.get("optserve-guard", "").encode()).hexdigest()
