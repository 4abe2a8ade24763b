"""What a step costs: time beside a fused `torch.optim.Adam` on all cores, and bytes of state for each coordinate.

Served optimizers are timed by the server's own word (`Server-Timing: compute`), on a session that tells the loss and
the horizon; others in this process. Either way Adam's step is timed in turn with it.
"""

import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytorch_optimizer
import schedulefree
import torch

from benchmarks.measuring import RESULTS, processor
from benchmarks.optimizers import subjects
from optserve import Client
from optserve_server.demo.server_process import running_server
from optserve_server.optimizers import weights
from optserve_server.optimizers.base import array_sizes, sizes

FILE = RESULTS / "optimizer_steps.json"
SHAPES = {
    "100,000": ((300, 300), (300,), (32, 300), (32,)),
    "1,000,000": ((960, 960), (960,), (80, 960), (80,)),
}
"""Of a small network, by about how many coordinates it has."""
ROUNDS, WARM_UP = 15, 3

Parameters = list[torch.nn.Parameter]
Step = Callable[[], float]
"""Makes a step and tells how many seconds it took."""

LOCAL: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.9, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "schedule-free-adamw": schedulefree.AdamWScheduleFree,
    "soap": pytorch_optimizer.SOAP,
    "ademamix": pytorch_optimizer.AdEMAMix,
    "prodigy": pytorch_optimizer.Prodigy,
}


@dataclass(frozen=True)
class Cost:
    """Of one optimizer; `ratios` are by size, and `state_bytes` of the largest."""

    optimizer: str
    served: bool
    state_bytes: float
    ratios: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        ratios = "   ".join(f"{ratio:6.2f} × at {size}" for size, ratio in self.ratios.items())
        return f"{self.optimizer:22} {self.state_bytes:6.1f} bytes a coordinate   {ratios} {'served' * self.served}"


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    found = []
    with running_server() as url, Client(url) as client:
        for name, data in subjects.weights(subjects.read()).items():
            found.append(of_served(client, url, name, data))
            print(found[-1])
    for name in LOCAL:
        found.append(of_local(name))
        print(found[-1])
    write(found, FILE)


def write(found: Sequence[Cost], file: Path) -> None:
    """Keep the costs, with what they were measured on."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "costs": [asdict(one) for one in found]}, indent=2) + "\n")


def read(file: Path) -> dict[str, Cost]:
    """The costs of a file by optimizer; none where it is not there."""
    if not file.exists():
        return {}
    return {one["optimizer"]: Cost(**one) for one in json.loads(file.read_text())["costs"]}


def of_served(client: Client, url: str, name: str, data: bytes) -> Cost:
    """By a server that gets its weights file."""
    version = client.optimizers.import_weights(name, data)
    ratios = {}
    for size, shapes in SHAPES.items():
        parameters = {str(place): shape for place, shape in enumerate(shapes)}
        session = client.sessions.create(f"{name}@{version.version}", parameters, horizon=1000)
        with httpx.Client(base_url=f"{url}/v1/sessions/{session.id}") as http:
            ratios[size] = ratio(served_step(http, shapes), shapes)
        session.close()
    optimizer, largest = weights.decode(data)[0], list(SHAPES.values())[-1]
    coordinates = sum(sizes(largest))
    arrays = sum(rows * columns for rows, columns in array_sizes(optimizer, largest).values())
    return Cost(name, True, 4 * (len(optimizer.features) + arrays / coordinates), ratios)


def served_step(http: httpx.Client, shapes: Sequence[tuple[int, ...]]) -> Step:
    """A step of a session at `http`, whose seconds are those that the server computed for."""
    gradients = iter(random_gradients(sum(sizes(tuple(shapes)))))
    numbers = iter(range(1_000_000))

    def step() -> float:
        response = http.post(
            f"/steps/{next(numbers)}",
            params={"loss": "1.0"},
            content=next(gradients).tobytes(),
            headers={"content-type": "application/octet-stream"},
        )
        response.raise_for_status()
        timing = re.search(r"compute;dur=([0-9.]+)", response.headers["server-timing"])
        assert timing is not None
        return float(timing[1]) / 1000

    return step


def of_local(name: str) -> Cost:
    """In this process."""
    ratios, state_bytes = {}, 0.0
    for size, shapes in SHAPES.items():
        optimizer, step = local_step(LOCAL[name], shapes)
        ratios[size] = ratio(step, shapes)
        state_bytes = _bytes(list(optimizer.state.values())) / sum(sizes(shapes))
    return Cost(name, False, state_bytes, ratios)


def local_step(
    make: Callable[[Parameters], torch.optim.Optimizer], shapes: Sequence[tuple[int, ...]]
) -> tuple[torch.optim.Optimizer, Step]:
    """An optimizer over parameters of these shapes, and its step."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = make(parameters)
    if isinstance(optimizer, schedulefree.AdamWScheduleFree):
        optimizer.train()
    gradients = iter(random_gradients(sum(sizes(tuple(shapes)))))

    def step() -> float:
        parts = torch.from_numpy(next(gradients)).split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        begun = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - begun

    return optimizer, step


def ratio(step: Step, shapes: Sequence[tuple[int, ...]]) -> float:
    """The median of its seconds, as a multiple of those of Adam's step, in turn with it."""
    _, adam = local_step(LOCAL["adam"], shapes)
    pairs = [(step(), adam()) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    own, peer = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return own / peer


def random_gradients(coordinates: int) -> Iterator[Any]:
    """Without end; the same for all."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.standard_normal(coordinates, dtype=np.float32)


def _bytes(state: Any) -> int:
    """Of all tensors in an optimizer's state that are not single numbers."""
    if isinstance(state, torch.Tensor):
        return state.nbytes if state.dim() else 0
    if isinstance(state, dict):
        return _bytes(list(state.values()))
    return sum(map(_bytes, state)) if isinstance(state, list | tuple) else 0


if __name__ == "__main__":
    main()
