"""Gradients there and updates back through the SDK, without a kernel, against a bare socket that sends bytes back.

A small step is nearly all HTTP, which a bare socket knows nothing of: its peers are httpx and FastAPI as they come.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Figure, echo_server, in_turn, write
from optserve import Client, Session
from optserve.wire.bodies import OptimizerReference, Parameter, SessionInfo
from optserve_server.demo.server_process import free_port

PEERS = Path(__file__).parent / "peers"
SMALL = 1_500
LARGE = {1_000_000: 200, 10_000_000: 30}  # rounds
START_SECONDS = 60.0


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        loopback = [str(free_port()), str(free_port())]
        unix = [f"{directory}/server", f"{directory}/bare"]
        write("wire", [figure for where in (loopback, unix) for figure in round_trips(*where)])


def round_trips(server: str, bare: str) -> Iterator[Figure]:
    """Figures of a server without a kernel, and of a bare socket, at two addresses: ports or paths."""
    with ExitStack() as stack:
        for name, address in (("kernelless", server), ("socket_echo", bare)):
            stack.enter_context(running(name, address))
        client = stack.enter_context(Client(f"http://127.0.0.1:{server}" if server.isdigit() else f"unix://{server}"))
        if server.isdigit():
            yield small_round_trip(client)
        for coordinates, rounds in LARGE.items():
            yield large_round_trip(client, bare, coordinates, rounds)


def small_round_trip(client: Client) -> Figure:
    session, gradients = session_of(client, SMALL), gradients_of(SMALL)
    with echo_server(free_port()) as url, httpx.Client() as http:

        def echo() -> object:
            return np.frombuffer(http.post(url, content=gradients.tobytes()).content, np.float32)

        ours, peer = in_turn(lambda: session.step_flat(gradients), echo, rounds=2000, warm_up=200)
    return Figure(f"{SMALL:,} floats there and back, loopback", "SDK", "httpx, FastAPI", ours, peer, at_most=1.0)


def large_round_trip(client: Client, bare: str, coordinates: int, rounds: int) -> Figure:
    session, gradients = session_of(client, coordinates), gradients_of(coordinates)
    reply = memoryview(bytearray(gradients.nbytes))
    with connected(bare) as connection:
        connection.sendall(len(reply).to_bytes(8, "little"))

        def bare_round_trip() -> None:
            connection.sendall(gradients)
            missing = reply
            while missing:
                missing = missing[connection.recv_into(missing) :]

        ours, peer = in_turn(lambda: session.step_flat(gradients), bare_round_trip, rounds=rounds, warm_up=rounds // 10)
    where = "loopback" if bare.isdigit() else "Unix socket"
    return Figure(f"{coordinates:,} floats there and back, {where}", "SDK", "bare socket", ours, peer, at_most=1.5)


def gradients_of(coordinates: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=coordinates).astype(np.float32)


def session_of(client: Client, coordinates: int) -> Session:
    """A session as the server without a kernel knows it, by the number of its coordinates."""
    info = SessionInfo(
        id=str(coordinates),
        optimizer=OptimizerReference("echo", 1, ""),
        next_step=0,
        coordinates=coordinates,
        parameters=[Parameter("w", [coordinates])],
        dtype="float32",
        hyperparameters={},
        horizon=None,
        label="",
        ttl_seconds=0,
        created_at="",
        expires_at="",
    )
    return Session(client.sessions._connection, info)


@contextmanager
def running(peer: str, address: str) -> Iterator[None]:
    """A program of `peers`, listening at the address."""
    process = subprocess.Popen([sys.executable, str(PEERS / f"{peer}.py"), address])
    try:
        give_up = time.monotonic() + START_SECONDS
        while not listens(address):
            if time.monotonic() > give_up:
                raise RuntimeError(f"{peer} does not listen")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def listens(address: str) -> bool:
    try:
        connected(address).close()
    except OSError:
        return False
    return True


def connected(address: str) -> socket.socket:
    if address.isdigit():
        connection = socket.create_connection(("127.0.0.1", int(address)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


if __name__ == "__main__":
    main()
