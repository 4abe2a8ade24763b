"""docs/reproduction.md: what was found, in tables, pictures and plain words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reproduction.studies import Study
from optserve.wire.evaluations import Curves, EvaluationResult
from optserve_server.evaluation.plots import plot
from optserve_server.evaluation.summaries import final_loss
from optserve_server.evaluation.tables import number

NAMES = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "nesterov": "NAG"}

INTRODUCTION = """# Reproduction of Andrychowicz et al. 2016

*Learning to learn by gradient descent by gradient descent*, arXiv 1606.04474. `make reproduce` made this page. It
meta-trains the paper's LSTM twice, on random quadratics and on a small perceptron, and tries it on tasks that it has
not seen, beside SGD, RMSprop, Adam and Nesterov's accelerated gradient (NAG) at their best learning rates.

{effort}
"""

METHOD = """## How

The optimizer is the paper's: two layers of 20 LSTM cells on every coordinate, gradients preprocessed with p = 10,
meta-trained for 100 steps by backpropagation truncated at 20, on the sum of the losses, without second derivatives, by
Adam. The recipes are [quadratic.toml](../benchmarks/reproduction/quadratic.toml) and
[perceptron.toml](../benchmarks/reproduction/perceptron.toml). The φ that is evaluated is the one that a recipe ends
with: no checkpoint was chosen by how it does on held-out tasks. The recipes' lengths were not chosen so blindly: two
were tried of each (4,000 and 8,000 outer steps on quadratics, 1,500 and 4,000 on the perceptron), and their results on
held-out tasks were seen.

Each is one meta-training of one seed, and away from what it was meta-trained on results vary much. An earlier one of
the same recipe and seed, on other code, also won on quadratics and on 20 and 40 units after 100 steps. But it lost on
20 and 40 units after 200, and ended at a median of 1.17 with two layers after 100 steps, and of 0.0007 on quadratics
after 200.

How optimizers are compared is told in [evaluations.md](evaluations.md). It favours the baselines: each gets the best of
at least nine learning rates on the very tasks that it is measured on, for the very number of steps.

What differs from the paper: the digits are scikit-learn's 1,797 images of 8 × 8 instead of MNIST's, 1,000 of them to
meta-train on and 797 to be tried on; meta-training is far shorter; NAG has PyTorch's form and a momentum of 0.9, and
the baselines' other hyperparameters are PyTorch's defaults.
"""


@dataclass(frozen=True)
class Comparison:
    """The learned optimizer and the best baseline on one task; `lower` counts the seeds on which it ended lower."""

    title: str
    learned: Curves
    baseline: Curves
    lower: int

    @property
    def ratio(self) -> float:
        """Of the median final losses; below 1 the learned optimizer is better."""
        return final_loss(self.learned) / final_loss(self.baseline)

    @property
    def wins(self) -> bool:
        """Whether it is better by the median and on most seeds."""
        return self.ratio < 1 and self.lower > len(self.learned.losses) / 2


def write(found: Sequence[tuple[Study, EvaluationResult]], effort: str, directory: Path) -> None:
    """Draw the pictures and write the page."""
    comparisons = [one for study, result in found for one in compare(study, result)]
    parts = [INTRODUCTION.format(effort=effort), *_summary(comparisons), *_verdict(comparisons), METHOD]
    for study, result in found:
        picture = f"reproduction-{study.name}.png"
        plot(result, directory / picture)
        parts += [f"## {study.title}\n", f"![{study.title}]({picture})\n", *_tables(study, result)]
    (directory / "reproduction.md").write_text("\n".join(parts), encoding="utf-8")


def compare(study: Study, result: EvaluationResult) -> Iterator[Comparison]:
    """The learned optimizer and the best baseline on each task of a study."""
    for task, title in enumerate(study.tasks):
        curves = [one for one in result.curves if one.task == task]
        (learned,) = [one for one in curves if not one.baseline]
        best = min((one for one in curves if one.baseline), key=final_loss)
        pairs = zip(learned.losses, best.losses, strict=True)
        lower = sum(_value(ours[-1]) < _value(theirs[-1]) for ours, theirs in pairs)
        yield Comparison(f"{title}, {study.steps} steps", learned, best, lower)


def _summary(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "| task | learned, untuned | best baseline | ratio | ends lower on |"
    yield "|---|---|---|---|---|"
    for one in comparisons:
        baseline = f"{_loss(one.baseline)} ({NAMES[one.baseline.optimizer]}, lr {one.baseline.learning_rate:.3g})"
        ours = f"**{_loss(one.learned)}**" if one.wins else _loss(one.learned)
        seeds = f"{one.lower} of {len(one.learned.losses)} seeds"
        yield f"| {one.title} | {ours} | {baseline} | {one.ratio:.3g} | {seeds} |"
    yield "\nMedian loss at the end, and the ratio of the two: below 1 the learned optimizer is better.\n"


def _verdict(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "## Where it wins, and where it does not\n"
    for won, beginning in ((True, "It ends below every tuned baseline on"), (False, "It does not on")):
        titles = [
            f"{one.title} ({_times(1 / one.ratio if won else one.ratio)} {'lower' if won else 'higher'} than "
            f"{NAMES[one.baseline.optimizer]})"
            for one in comparisons
            if one.wins is won
        ]
        if titles:
            yield f"{beginning}:\n\n" + "\n".join(f"- {title}" for title in titles) + "\n"
    diverged = [one for one in comparisons if one.learned.divergence]
    if diverged:
        shares = ", ".join(f"{one.learned.divergence:.0%} on {one.title}" for one in diverged)
        yield f"Some of its runs diverged, that is, ended above where they began: {shares}.\n"
    else:
        yield "None of its runs diverged.\n"


def _tables(study: Study, result: EvaluationResult) -> Iterator[str]:
    for task, title in enumerate(study.tasks):
        yield f"**{title}**, {result.steps} steps, {result.seeds} seeds:\n"
        yield "| optimizer | median | quartiles | diverged | learning rate |"
        yield "|---|---|---|---|---|"
        for one in sorted((one for one in result.curves if one.task == task), key=final_loss):
            name = NAMES.get(one.optimizer, "**learned**")
            quartiles = f"{number(one.lower_quartile[-1])} … {number(one.upper_quartile[-1])}"
            rate = f"{one.learning_rate:.3g}, of {len(one.learning_rates)}" if one.learning_rate else "–"
            yield f"| {name} | {_loss(one)} | {quartiles} | {one.divergence:.0%} | {rate} |"
        yield ""


def _loss(curves: Curves) -> str:
    return number(curves.median[-1])


def _times(ratio: float) -> str:
    if ratio < 1.1:
        return f"{ratio - 1:.0%}"
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:,.0f} times"


def _value(loss: float | None) -> float:
    return math.inf if loss is None else loss
