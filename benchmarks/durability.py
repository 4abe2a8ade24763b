"""What it costs that an acknowledged step survives a power cut: the server against itself without a journal."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measuring import Figure, Speed, in_turn, write
from optserve import Client
from optserve_server.demo.server_process import running_server

SMALL, LARGE, CLIENTS = 1_500, 1_000_000, 64
ROUNDS, SECONDS = 5, 3.0


def main() -> None:
    with running_server() as durable, running_server("benchmarks.peers.undurable") as peer:
        figures = [many_clients(durable, peer, name) for name in ("adam", "rnnprop", "lstm")]
        with Client(durable) as client, Client(peer) as peer_client:
            figures += [large_step(client, peer_client, "lstm", at_most=1.15), *large_cheap_step(client, peer_client)]
    write("durability", figures)


def many_clients(durable: str, peer: str, name: str) -> Speed:
    """The steps a second of 64 loops."""
    rates: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for url, found in zip((durable, peer), rates, strict=True):
            port = url.rpartition(":")[2]
            command = [sys.executable, "-m", "benchmarks.load", port, name, str(SMALL), str(CLIENTS), str(SECONDS)]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ours, theirs = map(statistics.median, rates)
    title = f"{CLIENTS} clients, {SMALL:,}, {name}"
    return Speed(title, "with the journal", "without", "steps", ours, theirs, at_least=0.7)


def large_step(client: Client, peer: Client, name: str, at_most: float) -> Figure:
    with stepping(client, name) as ours, stepping(peer, name) as theirs:
        seconds = in_turn(ours, theirs, rounds=16, warm_up=3)
    return Figure(f"step of {LARGE:,}, {name}", "with the journal", "without", *seconds, at_most=at_most)


def large_cheap_step(client: Client, peer: Client) -> list[Figure]:
    """Against the longer of the step without a journal, and the bare write of its 4 MB and its sync."""
    with tempfile.TemporaryDirectory() as directory, stepping(client, "adam") as ours, stepping(peer, "adam") as theirs:
        bare = appending(Path(directory) / "bare")
        seconds, without, written = in_turn(ours, theirs, bare, rounds=40, warm_up=5)
    longer, name = max((without, "without"), (written, "write and sync"))
    return [Figure(f"step of {LARGE:,}, adam", "with the journal", name, seconds, longer, at_most=1.2)]


@contextmanager
def stepping(client: Client, name: str) -> Iterator[Callable[[], object]]:
    session = client.sessions.create(name, {"w": (LARGE,)})
    gradients = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    yield lambda: session.step_flat(gradients)
    session.close()


def appending(path: Path) -> Callable[[], object]:
    """Appends the bytes of a step to a file and syncs it, as plainly as that can be done."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    octets = np.random.default_rng(0).normal(size=LARGE).astype(np.float32).tobytes()

    def append() -> None:
        os.write(file, octets)
        os.fdatasync(file)

    return append


if __name__ == "__main__":
    main()
