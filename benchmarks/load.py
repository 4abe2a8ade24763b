"""Many training loops at once, in one process that does as little as it can beside sending and receiving."""

import asyncio
import sys
import time
from typing import cast

import httpx
import numpy as np
import uvloop


class _Client(asyncio.Protocol):
    """One training loop: as soon as a step is answered it sends the next."""

    def __init__(self, session: str, body: bytes, over: "asyncio.Future[None]") -> None:
        self.session = session
        self.steps = 0
        self._over = over
        self._path = f"POST /v1/sessions/{session}/steps/".encode()
        form = "content-type: application/octet-stream"
        self._rest = f" HTTP/1.1\r\nhost: benchmark\r\n{form}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        self._expected = len(body)
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < self._expected:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._over.set_exception(RuntimeError(self._received.decode(errors="replace")))
            return
        self._received = b""
        self.steps += 1
        if not self._over.done():
            self._send()

    def _send(self) -> None:
        self._transport.write(self._path + str(self.steps).encode() + self._rest)


async def load(port: int, optimizer: str, coordinates: int, clients: int, seconds: float) -> float:
    """Steps a second of so many sessions of `optimizer` that all step as fast as they can."""
    loop = asyncio.get_running_loop()
    body = np.random.default_rng(0).normal(size=coordinates).astype(np.float32).tobytes()
    over: asyncio.Future[None] = loop.create_future()
    created = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as http:
        for _ in range(clients):
            wanted = {"optimizer": optimizer, "parameters": [{"name": "w", "shape": [coordinates]}]}
            reply = (await http.post("/sessions", json=wanted)).raise_for_status()
            created.append(_Client(reply.json()["id"], body, over))
        transports = [(await loop.create_connection(lambda c=one: c, "127.0.0.1", port))[0] for one in created]
        await asyncio.sleep(0.3)
        before, start = sum(one.steps for one in created), time.perf_counter()
        await asyncio.wait([over], timeout=seconds)
        rate = (sum(one.steps for one in created) - before) / (time.perf_counter() - start)
        if over.done():
            over.result()
        over.set_result(None)
        await asyncio.sleep(0.1)
        for transport in transports:
            transport.close()
        for one in created:
            await http.delete(f"/sessions/{one.session}")
    return rate


if __name__ == "__main__":
    port, optimizer, coordinates, clients, seconds = sys.argv[1:]
    print(uvloop.run(load(int(port), optimizer, int(coordinates), int(clients), float(seconds))))
