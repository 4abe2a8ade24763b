"""Servers that are killed and started again.

They are forked from a process that has imported everything already: a start takes a fraction of a second, and what is
killed is a whole server process all the same.
"""

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx

_PATIENCE = 180.0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Server:
    """A server on a data directory, at one address however often it is started."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "log"
        self._options = options
        self._forking = multiprocessing.get_context("forkserver")
        self._forking.set_forkserver_preload(["tests.torture.preloaded"])
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Start it; it is not ready yet."""
        options = ["--port", str(self.port), "--data-dir", str(self.directory / "data"), "--workers", "0"]
        self._process = self._forking.Process(
            target=_serve, args=([*options, *self._options], self.directory, self.log), daemon=True
        )
        self._process.start()

    def wait_until_ready(self) -> None:
        """Wait until it answers."""
        started = time.monotonic()
        while not self._is_ready():
            self.require_alive(started)
            time.sleep(0.005)

    def require_alive(self, since: float) -> None:
        """Raise an error, with the end of the log, if the server stopped by itself or has not answered for a minute."""
        assert self._process is not None
        if time.monotonic() > since + _PATIENCE or not self._process.is_alive():
            raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is flushed."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """SIGTERM, as an operator does it."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(_PATIENCE)

    @property
    def pid(self) -> int:
        """The process that serves now."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=_PATIENCE).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def _serve(options: list[str], directory: Path, log: Path) -> None:
    os.chdir(directory)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    from optserve.cli import main

    sys.argv = ["optserve", "serve", *options]
    main()
