"""The JSON of evaluations: optimizers on tasks, against baselines at their best learning rates.

Plain dataclasses, as in `bodies`. A loss that is not finite is null, for JSON has no infinity.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from optserve.wire.schema import REPLY as _REPLY
from optserve.wire.schema import REQUEST as _REQUEST
from optserve.wire.schema import TruthValue as _TruthValue
from optserve.wire.schema import WholeNumber as _WholeNumber

Loss = float | None
"""f(θ); null where it is not finite."""


@dataclass(slots=True)
class EvaluatedTask:
    """One family of optimizees, at one T, that all optimizers were tried on."""

    label: str
    """The family and the parameters that were given, as `digits-mlp:activation=relu`; behind `with`, the distortion."""
    family: str
    parameters: dict[str, Any]
    weight: float
    """Its share in the ranking's scores."""
    steps: int
    """T."""
    distortion: dict[str, Any] = field(default_factory=dict)
    """What the optimizers were shown in the place of the truth, as `{"gradient_scale": 1e8}`."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class TriedLearningRate:
    """How a baseline ended at one learning rate."""

    learning_rate: float
    median: Loss
    """Median over seeds of the final loss."""
    divergence: float
    """The share of seeds that diverged."""
    held_out: Loss = None
    """Median over seeds of the held-out loss, where the task has one."""

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
    """The best one; of an untuned optimizer the default; null for one that has none, as learned ones."""
    learning_rates: list[TriedLearningRate]
    """All that were tried, the lowest first; empty where nothing was tuned."""
    steps: list[int]
    """t of each point: 0 … T, thinned to some hundreds, the last always there."""
    losses: list[list[Loss]]
    """f(θ_t) on the minibatch of step t, for each seed at each point; where points are further apart, the mean over the
    steps since the one before. The first and the last are means over several minibatches."""
    median: list[Loss]
    """Over seeds, at each point."""
    lower_quartile: list[Loss]
    upper_quartile: list[Loss]
    divergence: float
    """The share of seeds whose final loss is not finite, or above the initial one by more than a twentieth."""
    held_out: list[Loss] = field(default_factory=list)
    """f(θ_T) of each seed on rows that its inner loop has not seen; empty where the task has no other rows."""
    held_out_learning_rate: float | None = None
    """Of a baseline: the rate of the lowest median held-out loss."""
    best_held_out: list[Loss] = field(default_factory=list)
    """Of a baseline: the held-out losses at that rate."""
    untuned: bool = False
    """Whether it is an optimizer at its published defaults."""

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
class Comparison:
    """One optimizer beside one baseline at its best learning rates, over some cells: a cell is a task at one T.

    What is compared are medians over seeds of final losses. A quotient counts as at most e^1.5 and at least e^−1.5, and
    losses below a millionth of the initial one count as that much.
    """

    optimizer: str
    baseline: str
    family: str | None
    """The cells are of this family; null for those of all."""
    steps: int | None
    """The cells are of this T; null for those of all."""
    cells: int
    ratio: float
    """Geometric mean of the optimizer's loss divided by the baseline's; below 1 the optimizer is better."""
    floored_ratio: float
    """The same with a thousandth of the initial loss added to both, so that what lies below it hardly counts."""
    wins: int
    """Cells on which the optimizer ends lower."""
    ties: int
    """Cells on which both end alike, mostly because both have solved the task."""
    runs_won: float
    """The share of seeds with which the optimizer ends lower; a tie is half of one."""
    speed_up: float
    """Interquartile mean over cells of the steps that the baseline needs as a multiple of those that the optimizer
    needs, to come to the loss that the worse of the two ends with."""
    held_out_ratio: float | None
    """As `ratio`, of held-out losses, the baseline at its best learning rate for those; null without such cells."""
    held_out_cells: int
    divergence: float
    """The share of the optimizer's runs that diverged."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class EvaluationResult:
    """Everything that an evaluation found."""

    steps: int
    """T, the longest of the horizons."""
    seeds: int
    tasks: list[EvaluatedTask]
    """Each task at each T."""
    curves: list[Curves]
    ranking: list[Rank]
    """The best first."""
    comparisons: list[Comparison]
    """Of every optimizer and baseline with every other baseline: over all cells, of each T, and of each family."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class EvaluationRequest:
    """Ask for an evaluation; what is absent has the server's default."""

    optimizers: list[str]
    """The learned optimizers: `NAME`, `NAME@7` or `NAME@ALIAS`."""
    tasks: list[dict[str, Any]] | None = None
    """As in a recipe: `{"family": …, "parameters": {…}, "weight": 1.0}`, and perhaps a `distortion`."""
    steps: _WholeNumber | None = None
    """T, the length of the inner loops."""
    horizons: list[_WholeNumber] | None = None
    """Several T in the place of `steps`, the shortest first: every task is tried at each."""
    seeds: _WholeNumber | None = None
    """How many tasks of each family."""
    seed: _WholeNumber | None = None
    """What everything drawn is drawn from."""
    baselines: list[str] | None = None
    """Hand-designed optimizers, each of which gets its best learning rate on each task."""
    untuned: list[str] | None = None
    """Optimizers at their published defaults: baselines, or `soap`, `ademamix`, `prodigy`."""
    suite: str | None = None
    """The name of a suite, `standard` or `stress`: whatever else is absent is as it says."""
    cache: _TruthValue | None = None
    """false: compute everything anew, also what an earlier evaluation has computed."""

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
    untuned: list[str]
    """Those at their published defaults; results call `adam` among them `adam (untuned)`."""
    tasks: list[EvaluatedTask]
    """Each task at each T."""
    suite: str | None
    """What it was asked for by, if by a suite."""
    steps: int
    """T, the longest of the horizons."""
    horizons: list[int]
    seeds: int
    seed: int
    cells: int
    """Pairs of a task at one T and an optimizer, baseline or untuned one."""
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
    """One evaluation, with the curves of every finished cell, and what they show beside each other once all are."""

    curves: list[Curves]
    comparisons: list[Comparison]
    """Of every optimizer and baseline with every other baseline: over all cells, of each T, and of each family."""
