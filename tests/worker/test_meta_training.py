"""A run in a worker: what it leaves in the database, however it ends."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optserve_server.metatraining import memory
from optserve_server.metatraining.outer_loop import OuterLoop, Progress
from optserve_server.registry import optimizers
from optserve_server.registry.database import Database
from optserve_server.tasks.quadratic import Quadratic
from optserve_server.worker import devices, holding, meta_training

PLACED = {"outer_step", "meta_loss", "meta_loss_held_out"}
"""Measurements that have a column of their own."""


def test_a_run_leaves_its_curve_its_versions_and_where_they_came_from(queue, working) -> None:
    run_id = queue.add(outer_steps=7, description="A tiny one.")
    with working():
        entry = queue.wait(run_id)
    assert (entry.run.status, entry.run.error, entry.run.outer_step) == ("succeeded", None, 7)
    assert entry.run.seconds_per_outer_step > 0
    loop = OuterLoop(queue.recipe(outer_steps=7))
    made = list(loop)
    assert [row[:3] for row in queue.curve(run_id)] == [
        (one.outer_step, one.meta_loss, one.meta_loss_held_out) for one in made
    ]
    rest = {name: value for name, value in asdict(made[4]).items() if name not in PLACED}
    assert queue.curve(run_id)[4][3] == rest
    assert {"loss", "meta_gradient_norm", "step", "horizon"} <= rest.keys()
    assert entry.versions == [1, 2, 3]  # of the outer steps 3, 6 and 7
    assert all(torch.equal(weight, queue.phi(3)[name]) for name, weight in loop.averaged_phi.items())
    versions = [queue.version(number) for number in entry.versions]
    assert [version.metrics for version in versions] == [
        {name: value for name, value in asdict(made[step - 1]).items() if name in PLACED} for step in (3, 6, 7)
    ]
    assert {(version.run, version.recipe["meta_optimizer"]["outer_steps"]) for version in versions} == {(run_id, 7)}
    assert [version.parent_id for version in versions] == [None, versions[0].id, versions[1].id]
    environment = versions[2].environment
    assert {"torch", "optserve", "python", "machine", "seed"} < environment.keys()
    assert environment["device"] == "cpu"
    with queue.database.session() as db_session:
        optimizer = optimizers.get_optimizer(db_session, "tiny")
        assert optimizer.description == "A tiny one."
        assert optimizers.get_entry(db_session, "tiny").latest == 3


def test_a_run_starts_from_the_weights_of_a_version(queue, working) -> None:
    with working():
        queue.wait(queue.add(outer_steps=3))
        start = queue.version(1)
        run_id = queue.add(outer_steps=3, start_from=start)
        queue.wait(run_id)
    loop = OuterLoop(queue.recipe(outer_steps=3), queue.phi(1))
    assert [row[1] for row in queue.curve(run_id)] == [one.meta_loss for one in loop]
    assert queue.version(2).parent_id == start.id


def test_a_run_that_goes_on_with_more_outer_steps_is_the_longer_run(queue, working) -> None:
    with working():
        run_id = queue.add(outer_steps=3)
        queue.wait(run_id)
        queue.resume(run_id, 6)
        entry = queue.wait(run_id)
        whole = queue.add(outer_steps=6)
        queue.wait(whole)
    assert (entry.run.status, entry.run.attempt, entry.versions) == ("succeeded", 2, [1, 2])
    assert queue.curve(run_id) == queue.curve(whole)
    assert queue.version(2).weights == queue.version(4).weights


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_run_ends_at_its_next_outer_step_with_a_version_and_can_go_on(queue, working) -> None:
    run_id = queue.add(outer_steps=100_000, checkpoints={"every": 50_000})
    with working():
        queue.wait(run_id, lambda entry: entry.run.outer_step)
        queue.cancel(run_id)
        asked = time.monotonic()
        entry = queue.wait(run_id)
        assert time.monotonic() - asked < 5
        assert (entry.run.status, entry.versions) == ("cancelled", [1])
        stopped = entry.run.outer_step
        assert [row[0] for row in queue.curve(run_id)] == list(range(1, stopped + 1))
        version = queue.version(1)
        assert version.outer_step == stopped
        assert version.metrics == {"outer_step": stopped, "meta_loss": queue.curve(run_id)[-1][1]}
        queue.resume(run_id)
        queue.wait(run_id, lambda entry: entry.run.outer_step > stopped)
        queue.cancel(run_id)
        queue.wait(run_id)
    assert queue.entry(run_id).versions == [1, 2]


def test_a_worker_that_is_told_to_stop_gives_its_run_back_as_it_is(queue, working) -> None:
    run_id = queue.add(outer_steps=100_000, checkpoints={"every": 50_000})
    with working() as stop:
        queue.wait(run_id, lambda entry: entry.run.outer_step)
        stop.set()
        given_back = queue.wait(run_id, lambda entry: entry.run.status == "queued").run
    assert (given_back.attempt, given_back.deaths) == (2, 0)
    with working():
        again = queue.wait(run_id, lambda entry: entry.run.outer_step > given_back.outer_step).run
        assert (again.status, again.attempt) == ("running", 2)
        queue.cancel(run_id)
    loop = OuterLoop(queue.recipe(outer_steps=100_000, checkpoints={"every": 50_000}))
    curve = queue.curve(run_id)
    assert [row[:2] for row in curve] == [(one.outer_step, one.meta_loss) for one, _ in zip(loop, curve, strict=False)]


@pytest.mark.parametrize("every", [10, 50_000], ids=["writing", "computing"])
def test_a_worker_that_has_lost_its_lease_writes_nothing_more_and_goes_on_to_other_work(
    queue, working, monkeypatch, every
) -> None:
    monkeypatch.setattr(meta_training, "FIRST_PAUSE_SECONDS", 1000)
    monkeypatch.setattr(meta_training, "_LONGEST_PAUSE_SECONDS", 1000)
    run_id = queue.add(outer_steps=100_000, checkpoints={"every": every})
    with working():
        queue.wait(run_id, lambda entry: entry.run.outer_step)
        queue.take_over(run_id, "another")
        before = queue.entry(run_id)
        queue.wait(queue.add())  # which that worker does
        after = queue.entry(run_id)
    assert (after.run.worker, after.run.outer_step) == ("another", before.run.outer_step)
    assert after.versions == before.versions
    assert len(queue.curve(run_id)) == before.run.outer_step


def test_a_worker_waits_for_a_database_that_is_away_for_a_moment(queue, working, monkeypatch) -> None:
    run_id = queue.add(outer_steps=100_000, checkpoints={"every": 50_000})
    with working():
        queue.wait(run_id, lambda entry: entry.run.outer_step)
        away = queue.database.url.database
        real, gone = queue.database._writing, Database(f"sqlite:///{away}/no/such/place.db")._writing
        monkeypatch.setattr(queue.database, "_writing", gone)
        time.sleep(1)
        before = queue.entry(run_id).run
        monkeypatch.setattr(queue.database, "_writing", real)
        after = queue.wait(run_id, lambda entry: entry.run.outer_step > before.outer_step).run
        assert (after.status, after.attempt) == ("running", 1)
        queue.cancel(run_id)
        queue.wait(run_id)
    assert [row[0] for row in queue.curve(run_id)] == list(range(1, queue.entry(run_id).run.outer_step + 1))


# --- failing ----------------------------------------------------------------------------------------------------------


def raising_from_call(number: int, error: BaseException) -> Callable[..., Any]:
    real, calls = Quadratic.batch, iter(range(10**9))

    def batch(self: Quadratic, *arguments: Any) -> Any:
        if next(calls) >= number:
            raise error
        return real(self, *arguments)

    return batch


@pytest.mark.parametrize("error", [ZeroDivisionError("no such\n  batch"), SystemExit("enough")])
def test_a_task_family_that_raises_fails_the_run_and_the_worker_lives_on(queue, working, monkeypatch, error) -> None:
    broken = queue.add(outer_steps=20, checkpoints={"every": 2})
    with monkeypatch.context() as patch, working():
        patch.setattr(Quadratic, "batch", raising_from_call(60, error))
        entry = queue.wait(broken)
        patch.undo()
        assert queue.wait(queue.add()).run.status == "succeeded"
    assert entry.run.status == "failed"
    text = " ".join(str(error).split())
    step, version = entry.run.outer_step + 1, entry.versions[-1]
    assert entry.run.error == f"outer step {step}: {type(error).__name__}: {text}; the last version is tiny@{version}"
    assert [row[0] for row in queue.curve(broken)] == list(range(1, step))
    with working():
        queue.resume(broken)
        assert queue.wait(broken).run.status == "succeeded"
    loop = OuterLoop(queue.recipe(outer_steps=20, checkpoints={"every": 2}))
    assert [row[1] for row in queue.curve(broken)] == [one.meta_loss for one in loop]


def test_a_run_that_diverges_says_where_and_what_is_still_good(queue, working) -> None:
    run_id = queue.add(
        outer_steps=50,
        meta_optimizer={"kind": "gradient-descent", "learning_rate": 1e30},
        architecture={"kind": "lstm", "hidden_size": 4, "layers": 1, "output_scale": 1e6},
        checkpoints={"every": 1},
    )
    with working():
        entry = queue.wait(run_id)
    assert entry.run.status == "failed"
    error = str(entry.run.error)
    assert error.startswith("outer step 1, quadratic: φ is not finite any more")
    assert "lower meta_optimizer.learning_rate" in error
    assert error.endswith("there is no version yet")
    assert [row[0] for row in queue.curve(run_id)] == [1]


def test_a_recipe_that_needs_more_memory_than_there_is_fails_with_the_figures(queue, working, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(devices, "memory_bytes", lambda: 2**20)
    run_id = queue.add()
    with working():
        error = str(queue.wait(run_id).run.error)
    needed = memory.estimate_bytes(queue.recipe())
    assert f"needs about {needed} bytes of memory, and cpu has {2**20}" in error
    assert "there is no version yet" in error


# --- how often --------------------------------------------------------------------------------------------------------


def test_many_outer_steps_are_one_write(queue, working, monkeypatch) -> None:
    writes = []
    real = Database.session

    def counting(self: Database, *, write: bool = False) -> Any:
        if write and threading.current_thread() is not threading.main_thread():
            writes.append(time.monotonic())
        return real(self, write=write)

    run_id = queue.add(outer_steps=100_000, checkpoints={"every": 50_000})
    monkeypatch.setattr(meta_training, "FIRST_PAUSE_SECONDS", 10.0)
    monkeypatch.setattr(holding, "HEARTBEAT_SECONDS", 0.5)
    with working():
        before = queue.wait(run_id, lambda entry: entry.run.outer_step).run.outer_step
        monkeypatch.setattr(Database, "session", counting)
        time.sleep(1.8)
        made = queue.entry(run_id).run.outer_step - before
        assert 1 <= len(writes) <= 4
        assert made > 10 * len(writes)
        queue.cancel(run_id)
        queue.wait(run_id)


def test_training_checkpoints_come_early_then_at_growing_pauses_and_never_too_late(queue, working, monkeypatch) -> None:
    """By a clock that goes a second an outer step."""
    saved: list[int] = []
    real_checkpoint, real_iter = OuterLoop.checkpoint, OuterLoop.__iter__
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def iterate(self: OuterLoop) -> Iterator[Progress]:
        for progress in real_iter(self):
            clock.now += 1
            yield progress

    def checkpoint(self: OuterLoop) -> bytes:
        saved.append(self.outer_step)
        return real_checkpoint(self)

    monkeypatch.setattr(OuterLoop, "__iter__", iterate)
    monkeypatch.setattr(OuterLoop, "checkpoint", checkpoint)
    monkeypatch.setattr(meta_training, "time", clock)
    with working():
        queue.wait(queue.add(outer_steps=60, checkpoints={"every": 1000}))
    assert saved[:5] == [1, 2, 4, 8, 16]
    assert max(after - before for before, after in pairwise(saved)) == 10
    assert saved[-1] == 60
