"""Evaluations: optimizers on held-out tasks, against baselines each at its best learning rate.

evaluation = client.evaluations.launch(["lstm@3"], tasks=[{"family": "digits-mlp"}])
for line in evaluation.wait(progress=True).ranking:
    print(line.optimizer, line.score)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from optserve.decoding import decode
from optserve.errors import EvaluationUnsuccessful
from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment, to_json
from optserve.wire.evaluations import EvaluationInfo, EvaluationRequest, EvaluationSummary

POLL_SECONDS = 0.5

AnyEvaluation = TypeVar("AnyEvaluation", bound="SharedEvaluation")


class SharedEvaluation(Resource):
    """The operations of Evaluation and AsyncEvaluation.

    Attributes:
        id: its identifier.
        summary: the evaluation as the server described it last, without its curves.
    """

    def __init__(self, connection: Any, summary: EvaluationSummary) -> None:
        super().__init__(connection)
        self._path = f"/evaluations/{segment(summary.id)}"
        self.id = summary.id
        self.summary = summary

    def __repr__(self) -> str:
        summary = self.summary
        return f"<{type(self).__name__} {self.id}: {summary.status}, {summary.done} of {summary.cells} done>"

    @exchange
    def refresh(self) -> Exchange[EvaluationSummary]:
        """Ask the server how far it is; `summary` follows."""
        return (yield from self._refresh())

    @exchange
    def result(self) -> Exchange[EvaluationInfo]:
        """Every curve that is finished, and the ranking once all are."""
        self.summary = info = yield from self._get(EvaluationInfo, self._path)
        return info

    @exchange
    def cancel(self) -> Exchange[EvaluationSummary]:
        """End it; finished curves stay.

        Raises:
            EvaluationConflict: it is over already.
        """
        response = yield from self._call("POST", f"{self._path}/cancel", repeatable=True)
        self.summary = decode(EvaluationSummary, response.content)
        return self.summary

    @exchange
    def wait(self, *, progress: bool = False) -> Exchange[EvaluationInfo]:
        """Wait until it is over; `progress` shows a bar on stderr.

        Raises:
            EvaluationUnsuccessful: it failed, or was cancelled.
        """
        with _bar(self.id, shown=progress) as show:
            show(self.summary)
            while self.summary.finished_at is None:
                show((yield from self._refresh(delay=POLL_SECONDS)))
        if self.summary.status != "succeeded":
            raise EvaluationUnsuccessful(f"evaluation {self.id} {_end(self.summary)}")
        return (yield from self._get(EvaluationInfo, self._path))

    def _refresh(self, delay: float = 0.0) -> Exchange[EvaluationSummary]:
        response = yield from self._call("GET", f"{self._path}?curves=false", delay=delay)
        self.summary = decode(EvaluationSummary, response.content)
        return self.summary


class Evaluation(Blocking, SharedEvaluation):
    """An evaluation of a `Client`."""


class AsyncEvaluation(Awaited, SharedEvaluation):
    """An evaluation of an `AsyncClient`: the same methods, awaited."""


class SharedEvaluations(Resource, Generic[AnyEvaluation]):
    """The operations of `client.evaluations`."""

    _evaluation_class: type[AnyEvaluation]

    @exchange
    def launch(
        self,
        optimizers: Sequence[str],
        *,
        tasks: Sequence[Mapping[str, Any]] | None = None,
        steps: int | None = None,
        seeds: int | None = None,
        seed: int | None = None,
        baselines: Sequence[str] | None = None,
    ) -> Exchange[AnyEvaluation]:
        """Have optimizers evaluated; what is None has the server's default.

        Args:
            optimizers: the learned ones: NAME, NAME@7 or NAME@ALIAS.
            tasks: as in a recipe: `{"family": "digits-mlp", "parameters": {"activation": "relu"}}`.
            steps: T, the length of the inner loops.
            seeds: how many tasks of each family.
            seed: what everything drawn is drawn from.
            baselines: hand-designed optimizers, each of which gets its best learning rate on each task.

        Raises:
            OptimizerNotFound, VersionNotFound, AliasNotFound: a reference stands for nothing.
            EvaluationInvalid: it cannot be made; the message begins with the key that is wrong.
        """
        chosen = None if tasks is None else [dict(task) for task in tasks]
        names = None if baselines is None else list(baselines)
        request = EvaluationRequest(list(optimizers), chosen, steps, seeds, seed, names)
        summary = yield from self._create(EvaluationSummary, "/evaluations", to_json(request))
        return self._evaluation_class(self._connection, summary)

    @exchange
    def get(self, id: str) -> Exchange[AnyEvaluation]:
        """The evaluation of that id.

        Raises:
            EvaluationNotFound: there is none.
        """
        summary = yield from self._get(EvaluationSummary, f"/evaluations/{segment(id)}?curves=false")
        return self._evaluation_class(self._connection, summary)

    @exchange
    def list(self) -> Exchange[list[EvaluationSummary]]:
        """Every evaluation of the server, the newest first."""
        return (yield from self._list(EvaluationSummary, "/evaluations"))


class Evaluations(Blocking, SharedEvaluations[Evaluation]):
    """`client.evaluations`."""

    _evaluation_class = Evaluation


class AsyncEvaluations(Awaited, SharedEvaluations[AsyncEvaluation]):
    """`client.evaluations` of an `AsyncClient`."""

    _evaluation_class = AsyncEvaluation


@contextmanager
def _bar(id: str, *, shown: bool) -> Iterator[Callable[[EvaluationSummary], object]]:
    if not shown:
        yield lambda summary: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"evaluation {id}")

        def show(summary: EvaluationSummary) -> None:
            bar.update(
                task,
                completed=summary.done,
                total=summary.cells,
                description=f"evaluation {id}, {summary.status}: {summary.done} of {summary.cells}",
            )

        yield show


def _end(summary: EvaluationSummary) -> str:
    return "was cancelled" if summary.status == "cancelled" else f"failed: {summary.error}"
