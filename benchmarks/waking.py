"""A server that was killed, started again: how long until all its sessions are back, from when it is ready."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from benchmarks.measuring import Figure, write

COORDINATES, SESSIONS, CLIENTS, LIMIT_SECONDS = 1_500, 1_000, 20, 5.0
STEPS = 11  # after which sessions have about as much to replay as there can be: then a snapshot is made
GRADIENTS = np.random.default_rng(0).normal(size=COORDINATES).astype("<f4").tobytes()


class Connection:
    """One connection, and HTTP/1.1 as plainly as it can be spoken, for the clients share the processor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def call(self, method: str, path: str, body: bytes = b"", media_type: str = "application/json") -> bytes:
        headers = f"host: benchmark\r\ncontent-type: {media_type}\r\ncontent-length: {len(body)}"
        self._writer.write(f"{method} /v1/sessions{path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        content = await self._reader.readexactly(int(length))
        if not head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(content.decode(errors="replace"))
        return content


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optserve-bench-") as data_dir:
        sessions: list[str] = []
        with serving(Path(data_dir)) as (port, process):
            all_at_once(port, lambda connection: fill(connection, sessions))
            process.kill()
            process.wait()
        asleep = list(sessions)
        with serving(Path(data_dir)) as (port, _):
            start = time.perf_counter()
            all_at_once(port, lambda connection: wake(connection, asleep))
            seconds = time.perf_counter() - start
    name = f"{len(sessions):,} sessions of {COORDINATES:,} back, lstm"
    write("waking", [Figure(name, "all", "limit", seconds, LIMIT_SECONDS, at_most=1.0)])


@contextmanager
def serving(data_dir: Path) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A server on this directory: its port, and its process, which is stopped at the end."""
    command = [sys.executable, "-m", "optserve", "serve", "--port", "0", "--data-dir", str(data_dir), "--workers", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
    with (data_dir / "log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=data_dir, text=True
        )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    try:
        while not httpx.get(f"{url}/readyz").is_success:
            time.sleep(0.01)
        yield int(url.rpartition(":")[2]), process
    finally:
        process.terminate()
        process.wait()


def all_at_once(port: int, work: Callable[[Connection], Awaitable[None]]) -> None:
    async def client() -> None:
        await work(Connection(*await asyncio.open_connection("127.0.0.1", port)))

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    asyncio.run(all_clients())


async def fill(connection: Connection, sessions: list[str]) -> None:
    """Create this client's sessions, and take some steps of each."""
    wanted = json.dumps({"optimizer": "lstm", "parameters": [{"name": "w", "shape": [COORDINATES]}]}).encode()
    for _ in range(SESSIONS // CLIENTS):
        sessions.append(session := json.loads(await connection.call("POST", "", wanted))["id"])
        for step in range(STEPS):
            await connection.call("POST", f"/{session}/steps/{step}", GRADIENTS, "application/octet-stream")


async def wake(connection: Connection, asleep: list[str]) -> None:
    """Go on with sessions, as long as there are some: each takes its next step."""
    while asleep:
        await connection.call("POST", f"/{asleep.pop()}/steps/{STEPS}", GRADIENTS, "application/octet-stream")


if __name__ == "__main__":
    main()
