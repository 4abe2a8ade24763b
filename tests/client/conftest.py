"""A client of the shared server, and a relay before it that loses connections on demand."""

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from optserve import Client
from optserve.cli import main


@pytest.fixture(scope="session")
def client(server) -> Iterator[Client]:
    """A client of the running server."""
    with Client(server.url) as client:
        yield client


@pytest.fixture(params=["rnnprop", "adam"])
def optimizer(request) -> str:
    """A learned optimizer, and one designed by hand."""
    return request.param


@pytest.fixture
def run_at(tmp_path, monkeypatch, capsys):
    """Makes what runs `optserve …` in an empty directory, against a server: its exit code, and what it wrote."""

    def run_at(url):
        monkeypatch.chdir(tmp_path)
        for name, value in {"OPTSERVE_URL": url, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}.items():
            monkeypatch.setenv(name, value)
        return run

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["optserve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, stdout=written.out, stderr=written.err)

    return run_at


class Relay:
    """Passes bytes on between clients and the server; closes the connection instead of passing on a reply it loses."""

    def __init__(self, listening: socket.socket, server_url: str) -> None:
        self.lose = 0
        self.lost = 0
        self.refuse: bytes | tuple[bytes, ...] = b""  # connections end at requests that begin so
        self.accepted = 0  # connections
        self._listening = listening
        self._server = (urlsplit(server_url).hostname, urlsplit(server_url).port)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                downstream, _ = self._listening.accept()
                self.accepted += 1
                upstream = socket.create_connection(self._server)
                self._open += [downstream, upstream]
                for source, target, loses in ((downstream, upstream, False), (upstream, downstream, True)):
                    thread = threading.Thread(target=self._pass_on, args=(source, target, loses))
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, loses: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not loses and self.refuse and data.startswith(self.refuse):
                    break
                if loses and self.lose:
                    self.lose -= 1
                    self.lost += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._open):
            end.close()


@pytest.fixture
def relay(server) -> Iterator[Relay]:
    """A relay at a port of its own, `relay.url`."""
    listening = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listening, server.url)
    relay.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield relay
    relay.close()


@pytest.fixture
def unix_relay(server, tmp_path) -> Iterator[Relay]:
    """A relay at a Unix socket."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    relay = Relay(listening, server.url)
    relay.url = f"unix://{tmp_path / 's'}"
    yield relay
    relay.close()
