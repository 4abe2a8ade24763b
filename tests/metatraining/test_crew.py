"""A crew of processes: the same bits with any number of them, and none that is left alone."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from optserve_server.metatraining import recipes
from optserve_server.metatraining.crew import Crew, CrewError, CrewKilled
from optserve_server.metatraining.outer_loop import OuterLoop, Progress
from optserve_server.optimizers import weights

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "architecture": {"kind": "rnnprop", "hidden_size": 4, "layers": 1},
    "tasks": [
        {"family": "quadratic", "parameters": {"dimension": 2}},
        {"family": "clusters-mlp", "choices": {"hidden_sizes": [[2], [3, 2]], "batch_size": [2, 3]}},
    ],
    "unroll": {"steps": {"low": 3, "high": 7}, "truncation": 2, "trajectories": 5, "advance": 3},
    "gradient": {"estimator": "nres", "unit_norm": True},
    "augmentation": {"coordinate_scaling": 1.0, "gradient_scaling": 0.5},
    "meta_optimizer": {"kind": "adam", "outer_steps": 9, "tasks_per_outer_step": 6},
    "curriculum": {"steps": [4], "patience": 1},
    "checkpoints": {"every": 2},
}

SCRIPT = """
import json, sys, time
from optserve_server.metatraining import recipes
from optserve_server.metatraining.crew import Crew
crew = Crew(recipes.parse(json.loads(sys.argv[1])), 2)
print(*(member.pid for member in crew._members), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def recipe() -> recipes.Recipe:
    return recipes.parse(RECIPE)


@pytest.fixture(scope="module")
def alone(recipe: recipes.Recipe) -> tuple[list[Progress], bytes]:
    """What one process comes to."""
    loop = OuterLoop(recipe)
    return list(loop), loop.checkpoint()


@pytest.fixture(scope="module")
def pair(recipe: recipes.Recipe) -> Iterator[OuterLoop]:
    """One of two processes, four outer steps on, in the middle of its trajectories."""
    loop = OuterLoop(recipe, processes=2)
    assert isinstance(loop._pool, Crew)
    yield loop
    loop.close()


def processes(loop: OuterLoop) -> list["subprocess.Popen[bytes]"]:
    assert isinstance(loop._pool, Crew)
    return loop._pool._members


def test_any_number_of_processes_comes_to_the_same_and_takes_up_what_another_left(
    recipe: recipes.Recipe, alone: tuple[list[Progress], bytes], pair: OuterLoop
) -> None:
    progress, end = alone
    assert list(islice(pair, 4)) == progress[:4]
    half = pair.checkpoint()
    assert list(pair) == progress[4:]
    assert pair.checkpoint() == end
    one = OuterLoop.resume(recipe, half)
    assert half == one.checkpoint()
    assert list(one) == progress[4:]
    three = OuterLoop.resume(recipe, half, processes=3)
    try:
        assert len(processes(three)) == 3
        assert list(three) == progress[4:]
        assert weights.encode(three.optimizer, three.phi) == weights.encode(pair.optimizer, pair.phi)
        with pytest.raises(CrewError, match=r"process 1 of 3 of the crew: AttributeError: .*'nonsense'"):
            three._pool._ask([{"nonsense": None}] * 3)  # type: ignore[attr-defined]
    finally:
        three.close()
    assert all(member.returncode is not None for member in processes(three))


def test_one_that_is_killed_is_told_and_takes_the_others_along(pair: OuterLoop) -> None:
    first, second = processes(pair)
    first.send_signal(signal.SIGINT)  # which is their maker's business
    second.send_signal(signal.SIGTERM)
    pair.checkpoint()
    second.kill()
    second.wait()
    with pytest.raises(CrewKilled, match="process 2 of 2 of the crew was killed by signal 9"):
        pair.checkpoint()
    assert first.returncode is not None


def test_more_processes_than_windows_find_nothing_to_do(recipe: recipes.Recipe) -> None:
    single = recipes.parse({**RECIPE, "unroll": {**RECIPE["unroll"], "advance": 1}})
    loop = OuterLoop(single, processes=8)
    assert not isinstance(loop._pool, Crew)


def test_they_end_with_the_process_that_made_them() -> None:
    maker = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(RECIPE)], stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        members = [int(pid) for pid in maker.stdout.readline().split()]
        assert len(members) == 2
        assert all(map(lives, members))
    finally:
        maker.kill()
        maker.communicate()
    deadline = time.monotonic() + 30
    while any(map(lives, members)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
