"""Meta-training runs: φ learned in the background, by the server's workers.

run = client.meta_training.launch("recipe.toml")
info = run.wait(progress=True)
session = client.sessions.create(f"{info.name}@{info.versions[-1]}", {"w": (64, 20)})
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from optserve.decoding import decode
from optserve.errors import RecipeInvalid, RunFailed
from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment, to_json
from optserve.run_progress import watching
from optserve.wire.gradients import JSON
from optserve.wire.meta_training import OVER, ResumeRequest, RunInfo, RunMetrics

POLL_SECONDS = 0.5

AnyRun = TypeVar("AnyRun", bound="SharedRun")


class SharedRun(Resource):
    """The operations of Run and AsyncRun.

    Attributes:
        info: the run as the server described it last.
        id: its identifier.
    """

    def __init__(self, connection: Any, info: RunInfo) -> None:
        super().__init__(connection)
        self._path = f"/meta-training-runs/{segment(info.id)}"
        self.id = info.id
        self.info = info

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<{type(self).__name__} {self.id}: {info.name}, {info.status}, outer step {info.outer_step} of "
            f"{info.outer_steps}>"
        )

    @exchange
    def refresh(self) -> Exchange[RunInfo]:
        """Ask the server how far the run is; `info` follows."""
        return (yield from self._refresh())

    @exchange
    def metrics(self) -> Exchange[list[dict[str, Any]]]:
        """The curve, evenly thinned to at most 2,000 rows: of each outer step `outer_step`, `meta_loss` and more."""
        found = yield from self._get(RunMetrics, f"{self._path}/metrics")
        return found.items

    @exchange
    def wait(self, *, progress: bool = False) -> Exchange[RunInfo]:
        """Wait until the run is over, and describe it as it ended: succeeded or cancelled.

        Args:
            progress: show a live bar with the meta-loss on stderr.

        Raises:
            RunFailed: it failed.
        """
        with watching(self.info, shown=progress) as show:
            while self.info.status not in OVER:
                show((yield from self._refresh(delay=POLL_SECONDS)))
        if self.info.error is not None:
            raise RunFailed(f"run {self.id} failed: {self.info.error}", self.info)
        return self.info

    @exchange
    def cancel(self) -> Exchange[RunInfo]:
        """End the run: at its next outer step, with a version of what it has learned so far.

        Raises:
            RunConflict: it has succeeded or failed already.
        """
        return (yield from self._act("cancel", repeatable=True))

    @exchange
    def resume(self, outer_steps: int | None = None) -> Exchange[RunInfo]:
        """Let a run that is over go on from its last training checkpoint.

        Args:
            outer_steps: how many it shall make in all; a run that has succeeded needs more than it had.

        Raises:
            RunConflict: it is not over, or has succeeded and shall make no more outer steps.
            RequestInvalid: fewer outer steps than it had.
        """
        return (yield from self._act("resume", to_json(ResumeRequest(outer_steps))))

    def _refresh(self, delay: float = 0.0) -> Exchange[RunInfo]:
        response = yield from self._call("GET", self._path, delay=delay)
        self.info = decode(RunInfo, response.content)
        return self.info

    def _act(self, action: str, body: bytes = b"", *, repeatable: bool = False) -> Exchange[RunInfo]:
        headers = {"Content-Type": JSON}
        response = yield from self._call("POST", f"{self._path}/{action}", body, headers, repeatable=repeatable)
        self.info = decode(RunInfo, response.content)
        return self.info


class Run(Blocking, SharedRun):
    """A meta-training run of a `Client`."""


class AsyncRun(Awaited, SharedRun):
    """A meta-training run of an `AsyncClient`: the same methods, awaited."""


class SharedMetaTraining(Resource, Generic[AnyRun]):
    """The operations of `client.meta_training`."""

    _run_class: type[AnyRun]

    @exchange
    def launch(self, recipe: str | os.PathLike[str] | Mapping[str, Any]) -> Exchange[AnyRun]:
        """Have an optimizer meta-trained by a recipe.

        Args:
            recipe: a TOML file, or its keys.

        Raises:
            RecipeInvalid: no TOML, or a recipe that cannot be run; `path` is the key that is wrong.
            OSError: the file cannot be read.
        """
        info = yield from self._create(RunInfo, "/meta-training-runs", to_json(_read(recipe)))
        return self._run_class(self._connection, info)

    @exchange
    def get(self, id: str) -> Exchange[AnyRun]:
        """The run of that id.

        Raises:
            RunNotFound: there is none.
        """
        info = yield from self._get(RunInfo, f"/meta-training-runs/{segment(id)}")
        return self._run_class(self._connection, info)

    @exchange
    def list(self) -> Exchange[list[AnyRun]]:
        """Every run of the server, the newest first."""
        infos = yield from self._list(RunInfo, "/meta-training-runs")
        return [self._run_class(self._connection, info) for info in infos]


class MetaTraining(Blocking, SharedMetaTraining[Run]):
    """`client.meta_training`."""

    _run_class = Run


class AsyncMetaTraining(Awaited, SharedMetaTraining[AsyncRun]):
    """`client.meta_training` of an `AsyncClient`."""

    _run_class = AsyncRun


def _read(recipe: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(recipe, Mapping):
        return recipe
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeInvalid(f"{os.fspath(recipe)} is not TOML: {error}") from error
