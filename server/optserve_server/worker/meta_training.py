"""A meta-training run in a worker: the outer loop's progress, persisted so that any other worker can go on from it.

What is written, and when:

- a row of metrics an outer step, with the next heartbeat or training checkpoint;
- a training checkpoint after the first outer step, then after pauses that grow to `CHECKPOINT_SECONDS`, and with every
  version;
- a version whenever φ was validated, and when the run is cancelled.

Rows are written in their order, and a checkpoint in one transaction with the rows before it. So a worker that dies
leaves a curve without a gap; its successor makes the outer steps behind the checkpoint again, and they come out alike.
"""

import time
from collections.abc import Callable
from contextlib import closing

import structlog
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from optserve_server.metatraining import memory, recipes
from optserve_server.metatraining.crew import CrewKilled
from optserve_server.metatraining.outer_loop import MetaTrainingError, OuterLoop, Progress
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.weight_files import provenance
from optserve_server.optimizers import weights
from optserve_server.registry import leases, optimizers, runs, weight_files
from optserve_server.registry.leases import CANCELLED, SUCCEEDED
from optserve_server.registry.models import MetaTrainingRun
from optserve_server.worker.devices import describe, device_memory_bytes
from optserve_server.worker.environment import environment
from optserve_server.worker.holding import Holding, nothing
from optserve_server.worker.jobs import last_line

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS, CHECKPOINT_SECONDS = 1.0, 10.0
"""The pauses between training checkpoints double, so that even a worker that does not live long brings the run on."""

_LONGEST_PAUSE_SECONDS = 25.0
_WRITING_SHARE = 0.05  # of the time is spent on writing checkpoints at most, as long as the pauses allow
_SMOOTHING = 0.1  # of the time that an outer step takes


class MetaTraining:
    """One attempt at a run."""

    def __init__(self, holding: Holding[MetaTrainingRun], device: torch.device) -> None:
        self._holding = holding
        self._device = device
        self._loop: OuterLoop | None = None
        self._pending: list[Progress] = []
        self._seconds: float | None = None
        self._pause, self._due = FIRST_PAUSE_SECONDS, 0.0
        self._newest_version = ""
        holding.gathered = self._write_metrics

    def carry_out(self) -> None:
        """Make the outer steps that are left."""
        try:
            loop = self._loop = self._open()
            with closing(loop):
                self._make_outer_steps(loop)
        except CrewKilled as killed:
            log.warning("given up", reason=str(killed))
            self._holding.persist(leases.give_up)

    def _make_outer_steps(self, loop: OuterLoop) -> None:
        steps = iter(loop)
        while True:
            self._holding.require()
            if self._holding.cancel_requested:
                return self._save(loop, version=True, then=_cancel)
            if self._holding.shutting_down:
                return self._save(loop, then=leases.give_back)
            began = time.monotonic()
            progress = next(steps, None)
            if progress is None:
                return self._holding.persist(_succeed)
            self._record(progress, time.monotonic() - began)
            validated = progress.meta_loss_held_out is not None
            if validated or time.monotonic() >= self._due:
                self._save(loop, version=validated)

    def explain(self, error: BaseException) -> str:
        """The outer step and the tasks, the last line of the traceback, and the last good version."""
        if isinstance(error, MetaTrainingError):
            reason = str(error)
        elif self._loop is None:
            reason = last_line(error)
        else:
            reason = f"outer step {self._loop.outer_step + 1}: {last_line(error)}"
        version = f"the last version is {self._newest_version}" if self._newest_version else "there is no version yet"
        return f"{reason.rstrip('.')}; {version}"

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _open(self) -> OuterLoop:
        recipe, checkpoint, phi = self._holding.persist(self._read)
        processes = torch.get_num_threads() if self._device.type == "cpu" else 1
        if checkpoint is not None:
            return OuterLoop.resume(recipe, checkpoint, self._device, processes)
        needed, there = memory.estimate_bytes(recipe, processes), device_memory_bytes(self._device)
        if needed > there:
            raise MemoryError(f"the recipe needs about {needed} bytes of memory, and {self._device} has {there}")
        return OuterLoop(recipe, phi, self._device, processes)

    def _read(self, db_session: Session, run: MetaTrainingRun) -> tuple[Recipe, bytes | None, dict[str, Tensor] | None]:
        """The recipe, and what to go on from: a training checkpoint, or the φ_0 of a version, or neither."""
        recipe = recipes.parse(run.recipe)
        self._newest_version = _newest_version(db_session, run)
        checkpoint = runs.find_training_checkpoint(db_session, run)
        if checkpoint is not None:
            return recipe, checkpoint.data, None
        start = runs.find_start(db_session, run)
        return recipe, None, None if start is None else weights.decode(start.weights)[1]

    # --- persisting ---------------------------------------------------------------------------------------------------

    def _record(self, progress: Progress, seconds: float) -> None:
        self._pending.append(progress)
        before = seconds if self._seconds is None else self._seconds
        self._seconds = before + _SMOOTHING * (seconds - before)

    def _write_metrics(self, db_session: Session, run: MetaTrainingRun) -> None:
        # What the run has a row of is committed. More may be appended meanwhile, but nothing is taken out elsewhere.
        del self._pending[: sum(one.outer_step <= run.outer_step for one in list(self._pending))]
        runs.add_metrics(db_session, run, list(self._pending))
        run.seconds_per_outer_step = self._seconds

    def _save(
        self, loop: OuterLoop, *, version: bool = False, then: Callable[[Session, MetaTrainingRun], None] = nothing
    ) -> None:
        """Write a training checkpoint, and a version where asked, in one transaction with what comes `then`."""
        _require_finite(loop)
        began = time.monotonic()
        data = loop.checkpoint()

        def write(db_session: Session, run: MetaTrainingRun) -> None:
            if version:
                self._add_version(db_session, run, loop)
            if loop.outer_step:
                runs.save_training_checkpoint(db_session, run, loop.outer_step, data)
            then(db_session, run)

        self._holding.persist(write)
        ended = time.monotonic()
        self._due = ended + min(max(self._pause, (ended - began) / _WRITING_SHARE), _LONGEST_PAUSE_SECONDS)
        self._pause = min(2 * self._pause, CHECKPOINT_SECONDS)

    def _add_version(self, db_session: Session, run: MetaTrainingRun, loop: OuterLoop) -> None:
        """Make the present φ a version, unless this outer step's is one already, or no outer step was made."""
        newest = optimizers.find_newest_version_of_run(db_session, run.id)
        if loop.outer_step == (0 if newest is None else newest.outer_step):
            return
        measured = runs.get_metrics(db_session, run, loop.outer_step)
        metrics = {
            "outer_step": loop.outer_step,
            "meta_loss": measured.meta_loss,
            optimizers.HELD_OUT: measured.meta_loss_held_out,
        }
        known = {name: value for name, value in metrics.items() if value is not None}
        metadata = {**provenance(loop.recipe, known), **environment(describe(self._device))}
        file = weight_files.read(weights.encode(loop.optimizer, loop.averaged_phi, metadata))
        added = optimizers.add_version(
            db_session,
            run.name,
            file,
            parent=newest or runs.find_start(db_session, run),
            run=run.id,
            outer_step=loop.outer_step,
        )
        self._newest_version = f"{run.name}@{added.number}"
        log.info("version", version=self._newest_version, outer_step=loop.outer_step)


def _require_finite(loop: OuterLoop) -> None:
    """Keep no φ that cannot be served or gone on from.

    Raises:
        MetaTrainingError: φ is not finite.
    """
    if all(bool(torch.isfinite(weight).all()) for weight in (*loop.phi.values(), *loop.averaged_phi.values())):
        return
    families = ", ".join(share.family for share in loop.recipe.tasks)
    message = "φ is not finite any more; lower meta_optimizer.learning_rate, or set meta_optimizer.clip_norm"
    raise MetaTrainingError(loop.outer_step, families, message)


def _newest_version(db_session: Session, run: MetaTrainingRun) -> str:
    version = optimizers.find_newest_version_of_run(db_session, run.id)
    return "" if version is None else f"{run.name}@{version.number}"


def _cancel(db_session: Session, run: MetaTrainingRun) -> None:
    leases.finish(db_session, run, CANCELLED)


def _succeed(db_session: Session, run: MetaTrainingRun) -> None:
    run.outer_steps = run.outer_step  # which are fewer than the recipe's, where its patience has ended it
    leases.finish(db_session, run, SUCCEEDED)
