"""Two hours of five steps a second, without the pauses: afterwards the server holds no more than before."""

import http.client
import json
import random
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import RunningServer, running_server

STEPS = 2 * 3600 * 5
LOOPS = 6
COORDINATES = 1_500
PARK_AFTER = 0.5
GROWTH_BYTES = 24 << 20  # of the process's memory, against what it had after a tenth of the steps


@pytest.mark.slow
def test_memory_files_and_disk_come_back_to_where_they_were(tmp_path: Path) -> None:
    with running_server(tmp_path, "--park-after", str(PARK_AFTER)) as server:
        _soak(server, STEPS // 10, seed=0)
        before = _held(server)
        _soak(server, STEPS - STEPS // 10, seed=1)
        after = _held(server)
    print(before, after)
    assert after["memory"] <= before["memory"] + GROWTH_BYTES
    assert after["files"] <= before["files"]
    assert after["disk"] == before["disk"] == 0


def _soak(server: RunningServer, steps: int, seed: int) -> None:
    """Loops create sessions, step them, let some sleep and wake, let some expire, and delete the others."""
    failures: list[BaseException] = []

    def follow(number: int) -> None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
                _Loop(connection, random.Random(1000 * seed + number)).take(steps // LOOPS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(LOOPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class _Loop:
    """One client with a handful of sessions at a time."""

    def __init__(self, connection: http.client.HTTPConnection, dice: random.Random) -> None:
        self._connection = connection
        self._dice = dice
        self._gradients = np.random.default_rng(0).normal(size=COORDINATES).astype(np.float32).tobytes()

    def take(self, steps: int) -> None:
        sleeping: list[tuple[str, int]] = []
        taken = 0
        while taken < steps:
            session, next_step = sleeping.pop(0) if len(sleeping) > 3 else (self._create(), 0)
            for _ in range(self._dice.randint(1, 120)):
                self._call("POST", f"/sessions/{session}/steps/{next_step}?loss=0.5", self._gradients)
                next_step += 1
                taken += 1
            if self._dice.random() < 0.3:
                self._call("PUT", f"/sessions/{session}/checkpoints/kept")
            if self._dice.random() < 0.3:
                sleeping.append((session, next_step))  # long enough to be parked
            elif self._dice.random() < 0.3:
                body = json.dumps({"ttl_seconds": 0.05}).encode()
                self._call("PATCH", f"/sessions/{session}", body, "application/json")
            else:
                self._call("DELETE", f"/sessions/{session}")
        for session, _ in sleeping:
            self._call("DELETE", f"/sessions/{session}")

    def _create(self) -> str:
        optimizer = self._dice.choice(["adam", "lstm", "momentum"])
        body = {"optimizer": optimizer, "parameters": [{"name": "w", "shape": [COORDINATES]}]}
        reply = self._call("POST", "/sessions", json.dumps(body).encode(), "application/json")
        created: dict[str, Any] = json.loads(reply)
        session: str = created["id"]
        return session

    def _call(self, method: str, path: str, body: bytes = b"", form: str = "application/octet-stream") -> bytes:
        self._connection.request(method, f"/v1{path}", body, {"Content-Type": form} if body else {})
        reply = self._connection.getresponse()
        content = reply.read()
        assert reply.status < 300, (method, path, reply.status, content[:500])
        return content


def _held(server: RunningServer) -> dict[str, int]:
    """What the process holds once the last sessions have expired."""
    sessions = server.data_dir / "sessions"
    deadline = time.monotonic() + 20
    while (left := _bytes_below(sessions)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]) << 10,
        "files": sum("optserve.db" not in file for file in _open_files(process)),  # the database's vary with its pool
        "disk": left,
    }


def _open_files(process: Path) -> list[str]:
    found = []
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(descriptor.readlink()))
    return found


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
