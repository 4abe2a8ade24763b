"""Sessions over plain HTTP, without the client that is tested elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from numpy.typing import NDArray

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
