"""What a key and its limits add to a step: to the whole step, and by themselves.

No sockets: they vary by more than what is looked for. Two whole applications run in one process, and take the same step
in turn; one is open, the other has keys.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import torch
from starlette.types import ASGIApp, Message

from benchmarks.measuring import Figure, write
from optserve.wire import RELAXED
from optserve.wire.limits import Limits
from optserve_server.api.accounts import Accounts
from optserve_server.api.authorisation import Authorisation
from optserve_server.api.key_ring import KeyRing
from optserve_server.api.metering import BodyMemory, Metering
from optserve_server.app import create_app
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.settings import Settings

AT_MOST = 1e-4
"""Seconds that they may add to a step."""

COORDINATES, ROUNDS, WARM_UP = 1_500, 2_000, 100
LIMITS = Limits(sessions=10, coordinates=10**6, bytes_in_flight=10**9, requests_per_second=1e6, runs=1)
KEYS = 1_000
HEADERS = {"host": "127.0.0.1:8000", "user-agent": "optserve", "content-type": "application/octet-stream"}

Step = Callable[[int], Awaitable[None]]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        write("authorisation", asyncio.run(measure(Path(directory))))


async def measure(directory: Path) -> list[Figure]:
    key = add_keys(Settings(data_dir=directory / "keys"))
    async with AsyncExitStack() as stack:
        with_key, without = [
            await a_loop(stack, Settings(data_dir=directory / name, durability=RELAXED), headers)
            for name, headers in (("keys", {**HEADERS, "authorization": f"Bearer {key}"}), ("open", HEADERS))
        ]
        subject, peer = await in_turn(with_key, without)
    whole = Figure(
        f"step of {COORDINATES:,} with a key", "step", "without, + 0.1 ms", subject, peer + AT_MOST, at_most=1.0
    )
    database = Database(Settings(data_dir=directory / "keys").database)
    alone, nothing = await in_turn(*both(database, {**HEADERS, "authorization": f"Bearer {key}"}))
    database.close()
    return [whole, Figure("a key and its limits alone", "both", "0.1 ms", alone - nothing, AT_MOST, at_most=1.0)]


def add_keys(settings: Settings) -> str:
    """Make many keys with every limit; one of them."""
    database = Database(settings.database)
    database.upgrade()
    with database.session(write=True) as db_session:
        made = [api_keys.add_key(db_session, f"key {n}", "client", limits=LIMITS)[1] for n in range(KEYS)]
    database.close()
    return made[KEYS // 2]


async def a_loop(stack: AsyncExitStack, settings: Settings, headers: dict[str, str]) -> Step:
    """The steps of a session of an application of its own."""
    app = create_app(settings)
    await stack.enter_async_context(app.router.lifespan_context(app))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as http:
        body = {"optimizer": "adam", "parameters": [{"name": "w", "shape": [COORDINATES]}]}
        reply = await http.post("/v1/sessions", json=body, headers={**headers, "content-type": "application/json"})
    gradients = np.random.default_rng(0).normal(size=COORDINATES).astype(np.float32).tobytes()
    return steps(app, f"/v1/sessions/{reply.json()['id']}/steps/", headers, gradients)


def steps(app: ASGIApp, path: str, headers: dict[str, str], body: bytes) -> Step:
    """Takes a step, as the server under the application would hand it on."""
    raw = [(name.encode(), value.encode()) for name, value in {**headers, "content-length": str(len(body))}.items()]

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    async def step(number: int) -> None:
        target = f"{path}{number}"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": target,
            "raw_path": target.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": list(raw),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await app(scope, receive, send)

    return step


def both(database: Database, headers: dict[str, str]) -> tuple[Step, Step]:
    """The two layers round nothing, and nothing."""
    keys = KeyRing(database, Limits(), may_be_open=False)
    keys.refresh()
    application = SimpleNamespace(state=SimpleNamespace(keys=keys))

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    layers = Authorisation(Metering(nothing, Accounts(database), BodyMemory(1 << 30)))

    async def within(scope: Any, receive: Any, send: Any) -> None:
        await layers({**scope, "app": application}, receive, send)

    path = f"/v1/sessions/{'0' * 32}/steps/"
    return steps(within, path, headers, b""), steps(nothing, path, headers, b"")


async def in_turn(*loops: Step) -> tuple[float, ...]:
    """The p10 of each in seconds: what the machine does beside it is more than what is looked for here."""
    times: list[list[float]] = [[] for _ in loops]
    for number in range(ROUNDS):
        for step, taken in zip(loops, times, strict=True):
            start = time.perf_counter()
            await step(number)
            taken.append(time.perf_counter() - start)
    return tuple(map(tenth, times))


def tenth(times: Sequence[float]) -> float:
    return statistics.quantiles(times[WARM_UP:], n=10)[0]


if __name__ == "__main__":
    main()
