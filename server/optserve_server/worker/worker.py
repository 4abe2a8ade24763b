"""A worker: claims a piece of work, carries it out, claims the next, until it is told to stop."""

import gc
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

import structlog
import torch

from optserve_server.registry import leases
from optserve_server.registry.database import UNREACHABLE, Database, reason
from optserve_server.registry.leases import FAILED, Lease, Leased, LeaseLost
from optserve_server.registry.models import Evaluation, MetaTrainingRun
from optserve_server.worker.devices import describe
from optserve_server.worker.evaluating import Evaluating
from optserve_server.worker.holding import Holding
from optserve_server.worker.jobs import Job
from optserve_server.worker.meta_training import MetaTraining
from optserve_server.worker.warming import warm_up

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0

JOBS: Mapping[type[Leased], type[Job]] = {Evaluation: Evaluating, MetaTrainingRun: MetaTraining}
"""How each kind of leased work is carried out, in the order in which a worker looks for it: the shorter one first."""


class Worker:
    """One worker of a database, computing on one device, until it is to `shut_down`.

    Then it stops after its present step and gives its work back. Once it has warmed up, it stands back for other
    processes by `niceness`.
    """

    def __init__(self, database: Database, device: torch.device, shut_down: threading.Event, niceness: int = 0) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._database = database
        self._device = device
        self._shut_down = shut_down
        self._niceness: int | None = niceness

    def work(self) -> None:
        """Carry out what is queued, one piece of work after another."""
        log.info("waiting for work", worker=self.name, device=describe(self._device))
        while not self._shut_down.is_set():
            lease = self._claim()
            if lease is not None:
                self._run(lease)
                self._clear_memory()
            elif not self._warm_up():
                self._shut_down.wait(POLL_SECONDS)
        log.info("stopped", worker=self.name)

    def _claim(self) -> Lease[Any] | None:
        try:
            with self._database.session() as db_session:
                table = leases.choose(db_session, JOBS)
            if table is None:
                return None
            with self._database.session(write=True) as db_session:
                work = leases.claim(db_session, table, worker=self.name, device=describe(self._device))
            if work is not None:
                log.info("claimed", work=work.id, attempt=work.attempt)
                return leases.lease_of(work)
        except UNREACHABLE as error:
            log.warning("the database is out of reach", reason=reason(error))
        return None

    def _run(self, lease: Lease[Any]) -> None:
        with Holding(self._database, lease, self._shut_down) as holding:
            self._warm_up()
            job = JOBS[lease.table](holding, self._device)
            try:
                try:
                    job.carry_out()
                except LeaseLost:
                    raise
                except (Exception, SystemExit) as error:  # whatever it is, it must not take the worker along
                    log.exception("failed")
                    why = job.explain(error)
                    holding.persist(lambda db_session, work: leases.finish(db_session, work, FAILED, why))
            except LeaseLost as lost:
                log.warning("the lease is lost", reason=str(lost))

    def _warm_up(self) -> bool:
        """Whether there was anything to do: the first time, when there is no work yet, or some has been claimed."""
        if self._niceness is None:
            return False
        warm_up(self._device)
        os.nice(self._niceness)
        self._niceness = None
        return True

    def _clear_memory(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
