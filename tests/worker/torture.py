"""Kills a server's worker again and again during one run, and says what that did to the run's curve and weights.

    .venv/bin/python tests/worker/torture.py --kills 20

The run is compared with an undisturbed one of the same recipe. With `--impatient N` the leases of the first N workers
that are killed do not have to run out by themselves: the script writes into the database that they have.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from optserve import Client
from optserve.meta_training import Run
from optserve.wire.meta_training import OVER, RunInfo

RECIPE: dict[str, Any] = {
    "name": "tortured",
    "architecture": {"kind": "lstm", "hidden_size": 8, "layers": 1},
    "tasks": [
        {"family": "quadratic", "parameters": {"dimension": 5}},
        {"family": "digits-mlp", "weight": 0.5, "parameters": {"hidden_sizes": [3], "batch_size": 4}},
    ],
    "unroll": {"steps": {"low": 10, "high": 40}, "truncation": 10},
    "meta_loss": {"kind": "log"},
    "augmentation": {"coordinate_scaling": 1.0},
    "meta_optimizer": {"kind": "adam", "learning_rate": 0.01, "averaging": 0.9, "tasks_per_outer_step": 8},
}
PATIENCE = 300.0


def main() -> int:
    """The exit code: 0 where nothing can be told from the undisturbed run."""
    options = _options()
    random.seed(options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="optserve-torture-") as directory,
        _server(Path(directory)) as url,
        Client(url) as client,
    ):
        tortured, takeovers = _torture(client, Path(directory) / "optserve.db", options)
        undisturbed = client.meta_training.launch(_recipe(options.outer_steps))
        undisturbed.wait()
        figures = _compare(client, tortured, undisturbed, takeovers)
    if options.json:
        print(json.dumps(figures))
    else:
        width = max(map(len, figures))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in figures.items()))
    return 0 if figures["equal to the undisturbed run"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--outer-steps", type=int, default=2000, help="at most 2000, for whole curves to be compared")
    parser.add_argument("--seconds", type=float, default=5.0, help="a worker lives at most, once it has the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--impatient", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _recipe(outer_steps: int) -> dict[str, Any]:
    settings = {**RECIPE["meta_optimizer"], "outer_steps": outer_steps}
    return {**RECIPE, "meta_optimizer": settings, "checkpoints": {"every": max(1, outer_steps // 10)}}


@contextmanager
def _server(directory: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "optserve", "serve", "--port", "0", "--workers", "1", "--data-dir", str(directory)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=directory, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _torture(client: Client, database: Path, options: argparse.Namespace) -> tuple[Run, list[float]]:
    """The run, and how long it was without a worker after each kill."""
    run = client.meta_training.launch(_recipe(options.outer_steps))
    takeovers: list[float] = []
    _wait(run, lambda info: info.status == "running")
    for attempt in range(1, options.kills + 1):
        time.sleep(random.uniform(0, options.seconds))
        if run.refresh().status in OVER:
            break
        os.kill(int(str(run.info.worker).rpartition("-")[2]), signal.SIGKILL)
        killed = time.monotonic()
        if attempt <= options.impatient:
            _let_leases_run_out(database)
        _wait(run, lambda info, attempt=attempt: info.attempt > attempt)
        takeovers.append(time.monotonic() - killed)
        if not options.json:
            print(f"kill {attempt}: outer step {run.info.outer_step}, taken up after {takeovers[-1]:.1f} s", flush=True)
    run.wait()
    return run, takeovers


def _wait(run: Run, condition: Callable[[RunInfo], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition(run.refresh()):
        assert run.info.status not in OVER, run.info
        assert time.monotonic() < deadline, run.info
        time.sleep(0.05)


def _let_leases_run_out(database: Path) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("UPDATE meta_training_runs SET lease_expires_at = created_at WHERE status = 'running'")


def _compare(client: Client, tortured: Run, undisturbed: Run, takeovers: list[float]) -> dict[str, Any]:
    rows, others = tortured.metrics(), undisturbed.metrics()
    steps = [row["outer_step"] for row in rows]
    weights, expected = (
        [client.optimizers.version(run.info.name, number).sha256 for number in run.info.versions]
        for run in (tortured, undisturbed)
    )
    gaps = sorted(set(range(1, tortured.info.outer_steps + 1)) - set(steps))
    differing = [row["outer_step"] for row, other in zip(rows, others, strict=False) if row != other]
    return {
        "kills": len(takeovers),
        "status": tortured.info.status,
        "attempts": tortured.info.attempt,
        "outer steps": tortured.info.outer_step,
        "gaps in the curve": len(gaps),
        "repeated outer steps": len(steps) - len(set(steps)),
        "rows that differ": len(differing),
        "versions": len(weights),
        "versions that differ": sum(one != other for one, other in zip(weights, expected, strict=False)),
        "seconds without a worker, median": round(statistics.median(takeovers), 1) if takeovers else None,
        "seconds without a worker, most": round(max(takeovers), 1) if takeovers else None,
        "equal to the undisturbed run": rows == others and weights == expected and not gaps,
    }


if __name__ == "__main__":
    sys.exit(main())
