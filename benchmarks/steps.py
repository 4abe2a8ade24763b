"""A step over HTTP: a small one against an echo of the same bytes, a large one against the same step in process."""

import httpx
import numpy as np
import torch

from benchmarks.measuring import Figure, echo_server, in_turn, write
from optserve import Client
from optserve_server import optimizers
from optserve_server.demo.server_process import free_port, running_server
from optserve_server.optimizers import Observations, weights
from optserve_server.optimizers.base import PAGE
from optserve_server.optimizers.serving import pages_for
from optserve_server.sessions.parallel import step_in_shares

SMALL, LARGE = 1_500, 1_000_000


def main() -> None:
    torch.set_num_threads(1)  # as the server does: a large step is shared out over cores page by page
    with running_server() as url, Client(url) as client:
        figures = [small_step(client, name) for name in ("adam", "rnnprop", "lstm")]
        figures += [large_step(client, name) for name in ("lstm", "rnnprop")]
        write("steps", figures)


def small_step(client: Client, name: str) -> Figure:
    session = client.sessions.create(name, {"w": (SMALL,)})
    gradients = np.random.default_rng(0).normal(size=SMALL).astype(np.float32)
    body = gradients.tobytes()
    with echo_server(free_port()) as url, httpx.Client() as http:

        def echo() -> object:
            return np.frombuffer(http.post(url, content=body).content, np.float32)

        ours, peer = in_turn(lambda: session.step_flat(gradients), echo, rounds=600, warm_up=50)
    session.close()
    return Figure(f"step of {SMALL:,}, {name}, over HTTP", "step", "echo", ours, peer, at_most=2.0)


def large_step(client: Client, name: str) -> Figure:
    data = client.optimizers.weights(name, 1)
    optimizer, phi, _ = weights.decode(data)
    gradients = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    pages = pages_for(LARGE)
    arena = torch.zeros(pages, len(optimizer.features), PAGE)
    numbers = torch.arange(pages)
    padded = torch.zeros(pages * PAGE)
    clock = torch.zeros(1, dtype=torch.float64)

    def in_process() -> object:
        padded[:LARGE] = torch.from_numpy(gradients)
        clock.add_(1)
        return step_in_shares(optimizer, phi, arena, numbers, Observations(padded.view(pages, PAGE), clock))

    session = client.sessions.create(name, {"w": (LARGE,)})
    ours, peer = in_turn(lambda: session.step_flat(gradients), in_process, rounds=12, warm_up=2)
    session.close()
    assert optimizer.kind in optimizers.LEARNED
    return Figure(f"step of {LARGE:,}, {name}, over HTTP", "step", "in process", ours, peer, at_most=1.3)


if __name__ == "__main__":
    main()
