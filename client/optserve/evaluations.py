"""Evaluations: optimizers on held-out tasks, against baselines each at its best learning rate.

evaluation = client.evaluations.launch(["lstm@3"], tasks=[{"family": "digits-mlp"}])
for line in evaluation.wait(progress=True).ranking:
    print(line.optimizer, line.score)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from optserve.decoding import decode
from optserve.errors import EvaluationFailed
from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment, to_json
from optserve.wire.evaluations import EvaluationInfo, EvaluationRequest, EvaluationSummary
from optserve.wire.meta_training import OVER

POLL_SECONDS = 0.5

AnyEvaluation = TypeVar("AnyEvaluation", bound="SharedEvaluation")


class SharedEvaluation(Resource):
    """The operations of Evaluation and AsyncEvaluation.

    Attributes:
        id: its identifier.
        info: the evaluation as the server described it last, without its curves.
    """

    def __init__(self, connection: Any, info: EvaluationSummary) -> None:
        super().__init__(connection)
        self._path = f"/evaluations/{segment(info.id)}"
        self.id = info.id
        self.info = info

    def __repr__(self) -> str:
        info = self.info
        return f"<{type(self).__name__} {self.id}: {info.status}, {info.done} of {info.cells} done>"

    @exchange
    def refresh(self) -> Exchange[EvaluationSummary]:
        """Ask the server how far it is; `info` follows."""
        return (yield from self._refresh())

    @exchange
    def result(self) -> Exchange[EvaluationInfo]:
        """Every curve that is finished, and the ranking once all are."""
        return (yield from self._result())

    @exchange
    def cancel(self) -> Exchange[EvaluationSummary]:
        """End it; finished curves stay.

        Raises:
            EvaluationConflict: it is over already.
        """
        response = yield from self._call("POST", f"{self._path}/cancel", repeatable=True)
        self.info = decode(EvaluationSummary, response.content)
        return self.info

    @exchange
    def wait(self, *, progress: bool = False) -> Exchange[EvaluationInfo]:
        """Wait until it is over: its curves and its ranking, or what there is of them where it was cancelled.

        Args:
            progress: show a live bar on stderr.

        Raises:
            EvaluationFailed: it failed.
        """
        with _bar(self.info, shown=progress) as show:
            while self.info.status not in OVER:
                show((yield from self._refresh(delay=POLL_SECONDS)))
        if self.info.error is not None:
            raise EvaluationFailed(f"evaluation {self.id} failed: {self.info.error}", self.info)
        return (yield from self._result())

    def _refresh(self, delay: float = 0.0) -> Exchange[EvaluationSummary]:
        response = yield from self._call("GET", f"{self._path}?curves=false", delay=delay)
        self.info = decode(EvaluationSummary, response.content)
        return self.info

    def _result(self) -> Exchange[EvaluationInfo]:
        self.info = result = yield from self._get(EvaluationInfo, self._path)
        return result


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
        horizons: Sequence[int] | None = None,
        seeds: int | None = None,
        seed: int | None = None,
        baselines: Sequence[str] | None = None,
        untuned: Sequence[str] | None = None,
        suite: str | None = None,
        cache: bool | None = None,
    ) -> Exchange[AnyEvaluation]:
        """Have optimizers evaluated; what is None has the server's default.

        Args:
            optimizers: the learned ones: NAME, NAME@7 or NAME@ALIAS.
            tasks: as in a recipe: `{"family": "digits-mlp", "parameters": {"activation": "relu"}}`.
            steps: T, the length of the inner loops.
            horizons: several T in the place of `steps`, the shortest first.
            seeds: how many tasks of each family.
            seed: what everything drawn is drawn from.
            baselines: hand-designed optimizers, each of which gets its best learning rate on each task.
            untuned: optimizers that run at their published defaults: baselines, soap, ademamix, prodigy.
            suite: the name of a suite, `standard` or `stress`; what else is None is then as it says.
            cache: False to compute anew what an earlier evaluation has computed.

        Raises:
            OptimizerNotFound, VersionNotFound, AliasNotFound: a reference stands for nothing.
            EvaluationInvalid: it cannot be made; the message begins with the key that is wrong.
        """
        request = EvaluationRequest(
            optimizers=list(optimizers),
            tasks=None if tasks is None else [dict(task) for task in tasks],
            steps=steps,
            horizons=None if horizons is None else list(horizons),
            seeds=seeds,
            seed=seed,
            baselines=None if baselines is None else list(baselines),
            untuned=None if untuned is None else list(untuned),
            suite=suite,
            cache=cache,
        )
        return self._evaluation((yield from self._create(EvaluationSummary, "/evaluations", to_json(request))))

    @exchange
    def get(self, id: str) -> Exchange[AnyEvaluation]:
        """The evaluation of that id.

        Raises:
            EvaluationNotFound: there is none.
        """
        return self._evaluation((yield from self._get(EvaluationSummary, f"/evaluations/{segment(id)}?curves=false")))

    @exchange
    def list(self) -> Exchange[list[AnyEvaluation]]:
        """Every evaluation of the server, the newest first."""
        infos = yield from self._list(EvaluationSummary, "/evaluations")
        return [self._evaluation(info) for info in infos]

    def _evaluation(self, info: EvaluationSummary) -> AnyEvaluation:
        return self._evaluation_class(self._connection, info)


class Evaluations(Blocking, SharedEvaluations[Evaluation]):
    """`client.evaluations`."""

    _evaluation_class = Evaluation


class AsyncEvaluations(Awaited, SharedEvaluations[AsyncEvaluation]):
    """`client.evaluations` of an `AsyncClient`."""

    _evaluation_class = AsyncEvaluation


@contextmanager
def _bar(info: EvaluationSummary, *, shown: bool) -> Iterator[Callable[[EvaluationSummary], object]]:
    """Gives what to call with every new description of the evaluation."""
    if not shown:
        yield lambda info: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=info.cells)

        def show(info: EvaluationSummary) -> None:
            bar.update(task, completed=info.done, description=f"evaluation {info.id}, {info.status}")

        show(info)
        yield show
