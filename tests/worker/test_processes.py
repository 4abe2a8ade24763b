"""Worker processes: killed, stopped, and side by side."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = str(Path(__file__).with_name("torture.py"))


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    """A server with a worker that is killed three times; the last time its lease runs out by itself."""
    options = ["--kills", "3", "--impatient", "2", "--outer-steps", "120", "--seconds", "1.5", "--json"]
    result = subprocess.run([sys.executable, TORTURE, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(result.stdout)
    assert figures["equal to the undisturbed run"]
    assert (figures["status"], figures["kills"], figures["attempts"], figures["versions"]) == ("succeeded", 3, 4, 10)
    assert (figures["gaps in the curve"], figures["repeated outer steps"]) == (0, 0)
    assert 10 < figures["seconds without a worker, most"] < 30


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


def test_a_directory_without_a_database_is_refused(optserve_command: str, tmp_path: Path) -> None:
    command = [optserve_command, "worker", "--data-dir", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert f"no database at sqlite:///{tmp_path / 'nowhere' / 'optserve.db'}" in line
    assert "Name the server's directory with --data-dir" in line
    assert not (tmp_path / "nowhere").exists()


def test_a_gpu_that_is_not_there_is_named(optserve_command: str, tmp_path: Path) -> None:
    words = [optserve_command, "worker", "--device", "cuda"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr
