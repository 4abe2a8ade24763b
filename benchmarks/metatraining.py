"""Meta-training an `lstm` on a CPU, against the same recipe in plain PyTorch and in JAX: coordinate steps a second.

A coordinate step is one coordinate of one task stepped once, forward and back; everything that an outer step does is in
the time: drawing tasks, f and its gradient, the unroll, the meta-gradient, Adam. Each on all cores that there are, and
each on one. Each has a process of its own, which is asleep while the others are measured.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.measuring import Speed, in_turn, write

WINDOW, HORIZON, HIDDEN, LEARNING_RATE = 20, 100, 20, 0.003
ROUNDS, WARM_UP = 9, 3  # trajectories

CASES: dict[str, dict[str, int]] = {
    "quadratics": {"tasks": 128, "dimension": 10},  # recipes/lstm-quadratic.toml
    "perceptrons": {"tasks": 12, "hidden": 20, "batch_size": 128},  # on the digits
}
COORDINATES = {"quadratics": 128 * 10, "perceptrons": 12 * (65 * 20 + 21 * 10)}
AT_LEAST = {"pytorch": 3.0, "jax": 1.5}


def main() -> None:
    figures = []
    for cores in dict.fromkeys((len(os.sched_getaffinity(0)), 1)):
        for case, coordinates in COORDINATES.items():
            with ExitStack() as stack:
                trainers = [stack.enter_context(_trainer(name, case, cores)) for name in ("optserve", *AT_LEAST)]
                seconds = in_turn(*trainers, rounds=ROUNDS, warm_up=WARM_UP)
            ours, *others = (coordinates * HORIZON / each for each in seconds)
            for (peer, at_least), theirs in zip(AT_LEAST.items(), others, strict=True):
                name = f"meta-training on {case}, {cores} core{'s' if cores > 1 else ''}"
                figures.append(Speed(name, "optserve", peer, "coordinate steps", ours, theirs, at_least))
    write("metatraining", figures)


@contextmanager
def _trainer(name: str, case: str, cores: int) -> Iterator[Callable[[], object]]:
    """A process that meta-trains for one trajectory at each call."""
    command = [sys.executable, "-m", "benchmarks.metatraining", name, case, str(cores)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def trajectory() -> None:
            print(file=asked)
            assert answered.readline() == "done\n"

        yield trajectory
        asked.close()


def _train(name: str, case: str, cores: int) -> None:
    """What that process does."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if name != "jax":
        import torch

        torch.set_num_threads(cores)
    outer_step = _optserve(case) if name == "optserve" else _peer(name, case)
    for _ in sys.stdin:
        for _ in range(HORIZON // WINDOW):
            outer_step()
        print("done", flush=True)


def _optserve(case: str) -> Callable[[], object]:
    from optserve_server.metatraining import recipes
    from optserve_server.metatraining.outer_loop import OuterLoop

    sizes = CASES[case]
    tasks: dict[str, Any] = {"family": "quadratic", "parameters": {"dimension": sizes.get("dimension")}}
    if case == "perceptrons":
        parameters = {"hidden_sizes": [sizes["hidden"]], "activation": "relu", "batch_size": sizes["batch_size"]}
        tasks = {"family": "digits-mlp", "parameters": parameters}
    recipe = recipes.parse(
        {
            "name": "benchmark",
            "architecture": {"kind": "lstm", "hidden_size": HIDDEN, "layers": 2},
            "tasks": [tasks],
            "unroll": {"steps": HORIZON, "truncation": WINDOW},
            "meta_loss": {"kind": "sum"},
            "gradient": {"second_order": False},
            "meta_optimizer": {
                "kind": "adam",
                "learning_rate": LEARNING_RATE,
                "clip_norm": 1.0,
                "outer_steps": 10**6,
                "tasks_per_outer_step": sizes["tasks"],
            },
            "checkpoints": {"every": 10**6},
        }
    )
    outer_steps = iter(OuterLoop(recipe, device="cpu"))
    return lambda: next(outer_steps)


def _peer(name: str, case: str) -> Callable[[], object]:
    peer: Any
    if name == "pytorch":
        from benchmarks.peers import pytorch_lstm as peer
    else:
        from benchmarks.peers import jax_lstm as peer

    tasks = {"quadratics": peer.Quadratics, "perceptrons": peer.Perceptrons}[case](**CASES[case])
    settings = {"window": WINDOW, "horizon": HORIZON, "hidden": HIDDEN, "learning_rate": LEARNING_RATE}
    outer_step: Callable[[], object] = peer.MetaTraining(tasks, **settings).outer_step
    return outer_step


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        _train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
