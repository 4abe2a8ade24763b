"""Sessions over plain HTTP, without the client that is tested elsewhere."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import torch
import uvicorn
from numpy.typing import NDArray
from sqlalchemy import text

import optserve
from optserve_server.app import create_app
from optserve_server.optimizers import build, weights
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.settings import Settings

OCTETS = "application/octet-stream"
SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "scale": ()}


class Loop:
    """One session as a training loop sees it."""

    def __init__(self, http: httpx.Client, info: dict[str, Any]) -> None:
        self.http = http
        self.info = info
        self.path = f"/sessions/{info['id']}"

    @property
    def coordinates(self) -> int:
        return int(self.info["coordinates"])

    def post(self, step: int, body: bytes, media_type: str = OCTETS, **query: Any) -> httpx.Response:
        headers = {"Content-Type": media_type}
        return self.http.post(f"{self.path}/steps/{step}", content=body, headers=headers, params=query)

    def step(self, step: int, gradients: NDArray[np.float32], **query: Any) -> bytes:
        reply = self.post(step, gradients.astype("<f4").tobytes(), **query)
        assert reply.status_code == 200, reply.text
        return reply.content

    def updates(self, step: int, gradients: NDArray[np.float32], **query: Any) -> NDArray[np.float32]:
        return np.frombuffer(self.step(step, gradients, **query), "<f4")

    def get(self, path: str = "") -> Any:
        reply = self.http.get(self.path + path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def state(self) -> bytes:
        reply = self.http.get(f"{self.path}/state")
        assert reply.status_code == 200, reply.text
        return reply.content

    def close(self) -> None:
        assert self.http.delete(self.path).status_code == 204


NewLoop = Callable[..., Loop]


def open_loop(
    http: httpx.Client, optimizer: str = "adam", shapes: Mapping[str, tuple[int, ...]] = SHAPES, **body: Any
) -> Loop:
    parameters = [{"name": name, "shape": list(shape)} for name, shape in shapes.items()]
    reply = http.post("/sessions", json={"optimizer": optimizer, "parameters": parameters, **body})
    assert reply.status_code == 201, reply.text
    return Loop(http, reply.json())


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Those of servers in threads: with the variables of every frame, as structlog would have it, one takes seconds."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    )


@pytest.fixture(scope="session")
def serving() -> Callable[[Settings], AbstractContextManager[str]]:
    """Serves with settings of its own, in a thread, as long as the block lasts; gives the server's URL."""

    @contextmanager
    def serve(settings: Settings, protocol: Any = "auto") -> Iterator[str]:
        config = uvicorn.Config(create_app(settings), http=protocol, port=0, log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return serve


@pytest.fixture(scope="session")
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def learned(http: httpx.Client) -> str:
    """The name of an `lstm` with random weights."""
    optimizer = build({"kind": "lstm", "hidden_size": 4})
    data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0)))
    headers = {"Content-Type": "application/x-safetensors"}
    reply = http.post("/optimizers/random-lstm/versions", content=data, headers=headers)
    assert reply.status_code in (200, 201), reply.text
    return "random-lstm"


@pytest.fixture
def new_loop(http: httpx.Client) -> Iterator[NewLoop]:
    """Creates sessions on the shared server and deletes them at the end."""
    opened: list[Loop] = []

    def new(*args: Any, **kwargs: Any) -> Loop:
        opened.append(open_loop(http, *args, **kwargs))
        return opened[-1]

    yield new
    for loop in opened:
        http.delete(loop.path)


@pytest.fixture
def gradients() -> Callable[[int], NDArray[np.float32]]:
    """Gradients of that many coordinates, other ones with every call."""
    generator = np.random.default_rng(7)
    return lambda coordinates: generator.normal(size=coordinates).astype(np.float32)


@pytest.fixture(scope="session")
def assert_problem() -> Callable[..., None]:
    """Checks that a reply is a problem of this type, with these members and this word in its detail."""

    def check(
        reply: httpx.Response, word: str, status: int, slug: str, members: Mapping[str, Any] | None = None
    ) -> None:
        assert reply.headers["content-type"] == "application/problem+json", reply.text
        problem = reply.json()
        expected = {"type": f"urn:optserve:problem:{slug}", "status": status, **(members or {})}
        assert {name: problem.get(name) for name in expected} == expected
        assert reply.status_code == status
        assert problem["title"]
        assert word in problem["detail"]

    return check


@dataclass(frozen=True)
class Served:
    """A server that has keys, each known by its name."""

    url: str
    database: Database
    keys: dict[str, str]

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"} if name in self.keys else {}

    def get(self, name: str, path: str = "/v1/sessions") -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers(name))

    def client(self, name: str) -> optserve.Client:
        return optserve.Client(self.url, self.keys[name])

    def add_key(self, name: str, scope: str = "client", **options: Any) -> str:
        with self.database.session(write=True) as db_session:
            return api_keys.add_key(db_session, name, scope, **options)[1]

    def revoke(self, name: str) -> None:
        with self.database.session(write=True) as db_session:
            api_keys.revoke_key(db_session, api_keys.get_key(db_session, name))


@pytest.fixture(scope="session")
def served(serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server with keys that tests share."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("keys"))
    settings.data_dir.mkdir(exist_ok=True)
    database = Database(settings.database)
    database.upgrade()
    prepared = Served("", database, {"unknown": api_keys.KEY_PREFIX + "0" * 48})
    for name, scope, options in (
        ("client", "client", {}),
        ("admin", "admin", {}),
        ("revoked", "admin", {}),
        ("expired", "admin", {"expires_in_days": 1e-9}),
        ("other client", "client", {}),
        ("other admin", "admin", {}),
    ):
        prepared.keys[name] = prepared.add_key(name, scope, **options)
    prepared.revoke("revoked")
    with serving(settings) as url:
        yield Served(url, database, prepared.keys)
    database.close()


@pytest.fixture
def rename(served: Served) -> Callable[[str, str], None]:
    """Renames a table of the server with keys."""

    def rename(old: str, new: str) -> None:
        with served.database.session(write=True) as db_session:
            db_session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    return rename


@dataclass(frozen=True)
class Route:
    """An operation of the OpenAPI document."""

    method: str
    path: str
    operation: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def scope(self) -> str | None:
        security = self.operation.get("security")
        return None if security is None else next(iter(security[0].values()))[0]

    @property
    def hole(self) -> str | None:
        """The one for a thing that belongs to a key."""
        return next((name for name in ("session_id", "run_id") if f"{{{name}}}" in self.path), None)

    def allows(self, key: str) -> bool:
        """Whether the server with keys lets this one in, by its name."""
        return self.scope is None or key.endswith("admin") or (self.scope == "client" and key.endswith("client"))


@pytest.fixture(scope="session")
def document(served) -> dict[str, Any]:
    return httpx.get(f"{served.url}/openapi.json").json()


@pytest.fixture(scope="session")
def routes(document) -> list[Route]:
    return [
        Route(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.fixture(scope="session")
def call(served, document):
    """Sends a request of a route with a body that its document allows, in the name of a key."""
    with httpx.Client(base_url=served.url, timeout=60) as http:

        def send(route: Route, key: str, **holes: str) -> httpx.Response:
            path = re.sub(r"\{(\w+)\}", lambda hole: holes[hole[1]], route.path)
            media_type, body = next(iter(route.operation.get("requestBody", {}).get("content", {}).items()), (None, {}))
            headers = served.headers(key) | ({"Content-Type": media_type} if media_type else {})
            if media_type != "application/json":
                return http.request(route.method, path, headers=headers, content=b"")
            return http.request(route.method, path, headers=headers, json=smallest(body["schema"], document))

        yield send


def smallest(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """The smallest thing that a JSON schema allows."""
    if "$ref" in schema:
        return smallest(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return smallest(schema[choice][0], document)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: smallest(schema["properties"][name], document) for name in schema.get("required", ())}
    return {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": [], None: {}}[schema.get("type")]
