"""The figures of each optimizer, as rows of Markdown tables."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.optimizers.steps import SHAPES, Cost
from optserve.wire.evaluations import Comparison, EvaluationResult
from optserve_server.evaluation import stability
from optserve_server.evaluation.comparisons import cells, comparison
from optserve_server.evaluation.tables import horizons, names

PEERS = {"adam": "Adam", "adam-cosine": "cosine Adam", "schedule-free-adamw": "schedule-free AdamW"}
"""The tuned baselines that all are compared with."""
_NOTHING = "–"


def short(result: EvaluationResult) -> Iterator[str]:
    """For the README: losses beside the first two peers, held-out losses, cells won, divergence."""
    peers = list(PEERS)[:2]
    columns = ["optimizer", *_loss_columns(result, peers), "held-out loss", "cells won + level", "diverged"]
    yield from _table(columns, ([*row[:3], *row[4:6], row[7]] for row in _rows(result)))


def full(result: EvaluationResult, stress: EvaluationResult, costs: Mapping[str, Cost]) -> Iterator[str]:
    """For docs/optimizers.md: everything."""
    columns = [
        *("optimizer", *_loss_columns(result, list(PEERS)), "held-out loss", "cells won + level", "speed-up"),
        *("diverged", "under stress", "bytes", f"step of {' · '.join(SHAPES)}"),
    ]
    learned = names(stress)
    rows = (
        [*row, str(stability.total(stress, name)) if name in learned else _NOTHING, *_cost(costs, name)]
        for name, row in zip(ordered(result), _rows(result), strict=True)
    )
    yield from _table(columns, rows)


def conditions(stress: EvaluationResult) -> Iterator[str]:
    """What diverged under each condition of the stress suite."""
    learned = names(stress)
    yield from _table(["condition", *learned], stability.by_condition(stress, learned))


def ablations(result: EvaluationResult, ablated: Sequence[EvaluationResult]) -> Iterator[str]:
    """What each ablation costs: losses beside the whole optimizer's and beside tuned Adam's."""
    whole, adam = names(result)[0], next(iter(PEERS))
    rows = []
    for one in ablated:
        (name,) = names(one)
        beside = [_beside(result, one, other) for other in (whole, adam)]
        rows.append([name, *beside, *_overall(result, one)])
    columns = [f"{whole} …", f"loss ÷ that of {whole} at {_steps(result)}", f"÷ that of {PEERS[adam]}", *_OVERALL]
    yield from _table(columns, rows)


def ingredients(result: EvaluationResult, cut: Sequence[EvaluationResult]) -> Iterator[str]:
    """What each ingredient of a recipe is worth: losses beside tuned Adam's without it."""
    adam = next(iter(PEERS))
    rows = [[*names(one), _beside(result, one, adam), *_overall(result, one)] for one in cut]
    yield from _table(["left out", f"loss ÷ that of {PEERS[adam]} at {_steps(result)}", *_OVERALL], rows)


_OVERALL = ("all", "held-out loss", "diverged")


def _overall(result: EvaluationResult, one: EvaluationResult) -> list[str]:
    """Beside tuned Adam, over all cells."""
    (name,) = names(one)
    found = comparison(cells(result.tasks, [*one.curves, *result.curves], name, next(iter(PEERS))))
    return [f"{found.ratio:.2f}", _held_out(found), str(stability.total(one, name))]


def _beside(result: EvaluationResult, one: EvaluationResult, other: str) -> str:
    """The only optimizer of `one` beside another of `result`, at each T."""
    (name,) = names(one)
    curves, every_horizon = [*one.curves, *result.curves], horizons(result.tasks)
    ratios = (comparison(cells(result.tasks, curves, name, other, steps=steps)).ratio for steps in every_horizon)
    return " · ".join(f"{ratio:.2f}" for ratio in ratios)


def _steps(result: EvaluationResult) -> str:
    return " · ".join(f"{one:,}" for one in horizons(result.tasks))


def ordered(result: EvaluationResult) -> list[str]:
    """Learned optimizers, tuned baselines, untuned ones; of each kind the best first."""
    adam = next(iter(PEERS))

    def ratio(name: str) -> float:
        return 1.0 if name == adam else _compared(result, name, adam).ratio

    kinds = (names(result), names(result, baseline=True), names(result, untuned=True))
    return [name for kind in kinds for name in sorted(kind, key=ratio)]


def _loss_columns(result: EvaluationResult, peers: Sequence[str]) -> list[str]:
    first, *others = (PEERS[one] for one in peers)
    return [f"loss ÷ that of {first} at {_steps(result)}", *(f"÷ that of {one}" for one in others)]


def _rows(result: EvaluationResult) -> Iterator[list[str]]:
    """Name; losses beside each peer; held-out loss, cells won and speed-up beside the first; divergence."""
    adam, learned = next(iter(PEERS)), names(result)
    for name in ordered(result):
        overall = _compared(result, name, adam)
        beside_adam = [_held_out(overall), _NOTHING, _NOTHING]  # Adam's own best rate by held-out loss is another
        if name != adam:
            beside_adam[1:] = [_won(overall), f"{overall.speed_up:.2f}"]
        shown = f"**{name}**" if name in learned else name if "(" in name else f"{name} (tuned)"
        losses = [_ratios(result, name, peer) for peer in PEERS]
        yield [shown, *losses, *beside_adam, str(stability.total(result, name))]


def _ratios(result: EvaluationResult, name: str, peer: str) -> str:
    """At each T."""
    if name == peer:
        return _NOTHING
    return " · ".join(f"{_compared(result, name, peer, steps).ratio:.2f}" for steps in horizons(result.tasks))


def _compared(result: EvaluationResult, name: str, peer: str, steps: int | None = None) -> Comparison:
    return comparison(cells(result.tasks, result.curves, name, peer, steps=steps), steps=steps)


def _held_out(one: Comparison) -> str:
    return _NOTHING if one.held_out_ratio is None else f"{one.held_out_ratio:.2f}"


def _won(one: Comparison) -> str:
    level = f" + {one.ties / one.cells:.0%}" if one.ties else ""
    return f"{one.wins / one.cells:.0%}{level}"


def _cost(costs: Mapping[str, Cost], name: str) -> list[str]:
    kind = name.partition(" ")[0]
    found = costs.get(kind) or costs.get(kind.removesuffix("-cosine"))
    if found is None:
        return [_NOTHING] * 2
    return [f"{found.state_bytes:.0f}", " · ".join(f"{ratio:.1f}" for ratio in found.ratios.values())]


def _table(columns: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
