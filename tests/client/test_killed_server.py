"""A training loop on a server that is killed again and again runs to its end, with the losses of an undisturbed one."""

import threading
import time
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from tests.torture.servers import Server

from optserve import Client
from optserve.torch import RemoteOptimizer

STEPS = 150
KILLS = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnnprop", "adamw"])
def test_the_losses_are_those_of_an_undisturbed_loop(name: str, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    server.wait_until_ready()
    undisturbed = _train(server.url, name)
    losses: list[float] = []
    loop = threading.Thread(target=lambda: losses.extend(_train(server.url, name, pause=0.02)))
    loop.start()
    for _ in range(KILLS):
        time.sleep(0.6)
        server.kill()
        server.start()
    loop.join()
    server.stop()
    assert losses == undisturbed


def _train(url: str, name: str, pause: float = 0.0) -> list[float]:
    data, target = load_digits(return_X_y=True)
    images, labels = torch.tensor(data / 16, dtype=torch.float32), torch.tensor(target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 20), torch.nn.Sigmoid(), torch.nn.Linear(20, 10))
    losses = []
    with Client(url) as client:
        optimizer = RemoteOptimizer(model.parameters(), name, client)
        for step in range(STEPS):
            rows = torch.arange(step * 64, (step + 1) * 64) % len(images)
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
            losses.append(loss.item())
            time.sleep(pause)
    return losses
