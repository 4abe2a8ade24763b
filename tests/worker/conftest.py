"""Workers in a thread or in processes of their own, on a database of the test's own."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from optserve_server.metatraining import memory, recipes
from optserve_server.metatraining.recipes import Recipe
from optserve_server.optimizers import weights
from optserve_server.registry import leases, optimizers, runs
from optserve_server.registry.database import Database
from optserve_server.registry.models import MetaTrainingRun, Version
from optserve_server.worker import holding, worker
from optserve_server.worker.worker import Worker

PATIENCE = 60


class Queue:
    """A database's runs, as those see them who ask for them."""

    def __init__(self, database: Database, tiny_recipe: dict[str, Any]) -> None:
        self.database = database
        self._tiny = tiny_recipe

    def recipe(self, outer_steps: int = 6, **changes: Any) -> Recipe:
        settings = {**self._tiny["meta_optimizer"], "outer_steps": outer_steps, **changes.pop("meta_optimizer", {})}
        return recipes.parse({**self._tiny, **changes, "meta_optimizer": settings})

    def add(self, outer_steps: int = 6, start_from: Version | None = None, **changes: Any) -> str:
        """Queue the tiny recipe with some changes; the id of the run."""
        recipe = self.recipe(outer_steps, **changes).model_dump(mode="json")
        given: Any = {"start_from": start_from, "owner": "ada", "idempotency_key": None, "fingerprint": "0" * 64}
        with self.database.session(write=True) as db_session:
            return runs.add_run(db_session, recipe, **given).id

    def version(self, number: int, name: str = "tiny") -> Version:
        with self.database.session() as db_session:
            return optimizers.get_version(db_session, name, number, with_weights=True)

    def phi(self, number: int) -> dict[str, torch.Tensor]:
        """The weights of a version."""
        return weights.decode(self.version(number).weights)[1]

    def entry(self, run_id: str) -> runs.RunEntry:
        with self.database.session() as db_session:
            return runs.get_entry(db_session, run_id)

    def curve(self, run_id: str) -> list[Any]:
        """Every row: the outer step and all that was measured."""
        with self.database.session() as db_session:
            rows = runs.list_metrics_after(db_session, runs.get_run(db_session, run_id), 0, limit=10**6)
            return [(row.outer_step, row.meta_loss, row.meta_loss_held_out, row.details) for row in rows]

    def cancel(self, run_id: str) -> None:
        with self.database.session(write=True) as db_session:
            runs.cancel_run(db_session, runs.get_run(db_session, run_id, lock=True))

    def resume(self, run_id: str, outer_steps: int | None = None) -> None:
        with self.database.session(write=True) as db_session:
            runs.resume_run(db_session, runs.get_run(db_session, run_id, lock=True), outer_steps)

    def take_over(self, run_id: str, worker: str) -> None:
        """What another worker does when the lease has run out; that it has is written in the same transaction."""
        with self.database.session(write=True) as db_session:
            run = runs.get_run(db_session, run_id, lock=True)
            run.lease_expires_at = leases.clock(db_session) - timedelta(seconds=1)
            db_session.flush()
            assert leases.claim(db_session, MetaTrainingRun, worker=worker, device="cpu") is run

    def wait(self, run_id: str, condition: Callable[[runs.RunEntry], Any] | None = None) -> runs.RunEntry:
        """Until the run is over, or the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while True:
            entry = self.entry(run_id)
            if condition(entry) if condition else entry.run.status in leases.OVER:
                return entry
            assert time.monotonic() < deadline, (entry.run.status, entry.run.outer_step, entry.run.error)
            time.sleep(0.02)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'optserve.db'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def queue(database: Database, tiny_recipe: dict[str, Any]) -> Queue:
    return Queue(database, tiny_recipe)


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in threads of the tests do not keep them waiting."""
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(holding, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(memory, "estimate_bytes", lambda recipe, processes=1: 0)


@pytest.fixture
def working(database: Database) -> Callable[[], AbstractContextManager[threading.Event]]:
    """A worker in a thread, as long as a block lasts; it stops when the event is set, and at the end."""

    @contextmanager
    def work() -> Iterator[threading.Event]:
        stop = threading.Event()
        thread = threading.Thread(target=Worker(database, torch.device("cpu"), stop).work)
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join()

    return work


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[[Database], "subprocess.Popen[bytes]"]]:
    """Starts `optserve worker` in a process of its own; killed at the end."""
    with ExitStack() as stack:

        def start(database: Database) -> "subprocess.Popen[bytes]":
            url = database.url.render_as_string(hide_password=False)
            command = [sys.executable, "-m", "optserve", "worker", "--database-url", url]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start
