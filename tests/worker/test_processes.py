"""Worker processes: killed, stopped, and side by side."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from optserve_server.metatraining.outer_loop import OuterLoop

LONG = {"outer_steps": 300, "checkpoints": {"every": 100}}


def children(pid: int) -> list[int]:
    """The processes that a process has started, in the order of their ids."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return sorted(found)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_killed_workers_run_is_taken_up_in_time_and_comes_out_the_same(queue, start_worker) -> None:
    """The lease runs out by itself."""
    run_id = queue.add(**LONG)
    killed = start_worker(queue.database)
    before = queue.wait(run_id, lambda entry: entry.run.outer_step > 20)
    start_worker(queue.database)
    killed.kill()
    asked = time.monotonic()
    again = queue.wait(run_id, lambda entry: entry.run.attempt == 2)
    assert 5 < time.monotonic() - asked < 30
    assert again.run.worker != before.run.worker
    entry = queue.wait(run_id)
    assert (entry.run.status, entry.run.attempt, entry.versions) == ("succeeded", 2, [1, 2, 3])
    loop = OuterLoop(queue.recipe(**LONG))
    assert [row[:3] for row in queue.curve(run_id)] == [
        (one.outer_step, one.meta_loss, one.meta_loss_held_out) for one in loop
    ]
    assert all((weight == queue.phi(3)[name]).all() for name, weight in loop.averaged_phi.items())


def test_a_worker_stops_at_a_signal_and_its_run_waits_for_the_next_at_once(queue, start_worker) -> None:
    run_id = queue.add(outer_steps=1_000_000)
    process = start_worker(queue.database)
    queue.wait(run_id, lambda entry: entry.run.outer_step)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    run = queue.entry(run_id).run
    assert (run.status, run.attempt) == ("queued", 2)


def test_a_database_that_is_none_is_one_line(optserve_command: str, tmp_path: Path) -> None:
    command = [optserve_command, "worker", "--database-url", "postgresql://127.0.0.1:1/none"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: the database cannot be opened")


def test_a_gpu_that_is_not_there_is_named(optserve_command: str, tmp_path: Path) -> None:
    words = [optserve_command, "worker", "--device", "cuda"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr


def test_a_server_starts_its_workers_again_and_they_stop_with_it(start_server) -> None:
    server = start_server("--workers", "1")
    assert "workers            1" in server.banner

    def worker(other_than: int = 0) -> int:
        deadline = time.monotonic() + 20
        while not (found := [pid for pid in children(server.process.pid) if pid != other_than and is_alive(pid)]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found[0]

    first = worker()
    assert int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[16]) in (0, 10)  # nice, once it runs
    os.kill(first, signal.SIGKILL)
    second = worker(other_than=first)
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 20
    while is_alive(second):
        assert time.monotonic() < deadline
        time.sleep(0.05)
