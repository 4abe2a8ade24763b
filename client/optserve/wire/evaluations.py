"""The JSON of evaluations: optimizers on tasks, against baselines at their best learning rates.

Plain dataclasses, as in `bodies`. A loss that is not finite is null, for JSON has no infinity.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.schema import REPLY as _REPLY
from optserve.wire.schema import REQUEST as _REQUEST
from optserve.wire.schema import WholeNumber as _WholeNumber

Loss = float | None
"""f(θ); null where it is not finite."""


@dataclass(slots=True)
class EvaluatedTask:
    """One family of optimizees that all optimizers were tried on."""

    label: str
    """The family and the parameters that were given, as `digits-mlp:activation=relu`."""
    family: str
    parameters: dict[str, Any]
    weight: float
    """Its share in the ranking's scores."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class TriedLearningRate:
    """How a baseline ended at one learning rate."""

    learning_rate: float
    median: Loss
    """Median over seeds of the final loss."""
    divergence: float
    """The share of seeds that diverged."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class Curves:
    """One optimizer on one task: a loss curve a seed, and what they amount to.

    A baseline's are those at the best of its learning rates, which is the one of the lowest median final loss.
    """

    task: int
    """The task's place in the list of tasks, from 0."""
    optimizer: str
    baseline: bool
    learning_rate: float | None
    """The best one; null for a learned optimizer, which has none."""
    learning_rates: list[TriedLearningRate]
    """All that were tried, the lowest first; empty for a learned optimizer."""
    steps: list[int]
    """t of each point: 0 … T, thinned to some hundreds, the last always there."""
    losses: list[list[Loss]]
    """f(θ_t) on the minibatch of step t, for each seed at each point; the first and the last are means over several."""
    median: list[Loss]
    """Over seeds, at each point."""
    lower_quartile: list[Loss]
    upper_quartile: list[Loss]
    divergence: float
    """The share of seeds whose final loss is not finite, or above the initial one."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class Rank:
    """One line of the ranking, over all tasks."""

    optimizer: str
    baseline: bool
    score: float
    """Geometric mean over tasks, by weight, of the ratio of the median final loss to the best baseline's; lower is
    better, and 1 is level with the best baseline of every task. Each ratio is held between 1/100 and 100, and losses
    below a millionth of the initial one count as that much."""
    wins: int
    """Tasks on which nothing ended lower."""
    divergence: float
    """The share of all seeds of all tasks that diverged."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class EvaluationResult:
    """Everything that an evaluation found."""

    steps: int
    """T."""
    seeds: int
    tasks: list[EvaluatedTask]
    curves: list[Curves]
    ranking: list[Rank]
    """The best first."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class EvaluationRequest:
    """Ask for an evaluation; what is absent has the server's default."""

    optimizers: list[str]
    """The learned optimizers: `NAME`, `NAME@7` or `NAME@ALIAS`."""
    tasks: list[dict[str, Any]] | None = None
    """As in a recipe: `{"family": …, "parameters": {…}, "weight": 1.0}`."""
    steps: _WholeNumber | None = None
    """T, the length of the inner loops."""
    seeds: _WholeNumber | None = None
    """How many tasks of each family."""
    seed: _WholeNumber | None = None
    """What everything drawn is drawn from."""
    baselines: list[str] | None = None
    """Hand-designed optimizers, each of which gets its best learning rate on each task."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class EvaluationSummary:
    """One evaluation in a list."""

    id: str
    status: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    optimizers: list[str]
    """`NAME@N` of each."""
    baselines: list[str]
    tasks: list[EvaluatedTask]
    steps: int
    seeds: int
    seed: int
    cells: int
    """Pairs of a task and an optimizer or baseline."""
    done: int
    """How many of them are finished."""
    ranking: list[Rank]
    """The best first; empty until it has succeeded."""
    error: str | None
    """Why it failed."""
    worker: str | None
    device: str | None
    attempt: int
    """How many workers have taken it up."""
    owner: str
    """Who asked for it."""
    created_at: str
    """RFC 3339, UTC; so are the next two."""
    started_at: str | None
    finished_at: str | None

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class EvaluationInfo(EvaluationSummary):
    """One evaluation, with the curves of every finished cell."""

    curves: list[Curves]
