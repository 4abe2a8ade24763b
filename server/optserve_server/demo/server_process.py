"""A server of one's own for a while: started on a free port with an empty data directory, stopped at the end."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_START_SECONDS = 180.0  # the first time on a machine kernels are compiled
_STOP_SECONDS = 15.0


class ServerStartError(RuntimeError):
    """The server did not become ready."""


@contextmanager
def running_server(module: str = "optserve") -> Iterator[str]:
    """Start `optserve serve`, or what another module takes for it, yield its URL once it is ready, stop it.

    Raises:
        ServerStartError: with what the server printed.
    """
    with tempfile.TemporaryDirectory(prefix="optserve-demo-") as data_dir:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = Path(data_dir) / "server.log"
        options = ["--port", str(port), "--data-dir", data_dir, "--workers", "0"]
        command = [sys.executable, "-m", module, "serve", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=data_dir, env=environment, start_new_session=True
            )
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.05)
    raise ServerStartError(f"the server did not start; it printed:\n{log.read_text(errors='replace')}")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
