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
    columns = ["optimizer", *_loss_columns(result, peers), "held-out loss", "cells won", "diverged"]
    yield from _table(columns, ([*row[:3], *row[4:6], row[7]] for row in _rows(result)))


def full(result: EvaluationResult, stress: EvaluationResult, costs: Mapping[str, Cost]) -> Iterator[str]:
    """For docs/optimizers.md: everything."""
    columns = [
        *("optimizer", *_loss_columns(result, list(PEERS)), "held-out loss", "cells won", "speed-up", "diverged"),
        *("under stress", "bytes", f"step of {' · '.join(SHAPES)}"),
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
    every_horizon = horizons(result.tasks)
    steps = " · ".join(f"{one:,}" for one in every_horizon)
    rows = []
    for one in ablated:
        (name,) = names(one)
        curves = [*one.curves, *result.curves]
        beside = [
            " · ".join(
                f"{comparison(cells(result.tasks, curves, name, other, steps=horizon)).ratio:.2f}"
                for horizon in every_horizon
            )
            for other in (whole, adam)
        ]
        overall = comparison(cells(result.tasks, curves, name, adam))
        rows.append([name, *beside, _held_out(overall), str(stability.total(one, name))])
    losses = (f"loss ÷ that of {whole} at {steps}", f"÷ that of {PEERS[adam]}")
    columns = [f"{whole} …", *losses, "held-out loss", "diverged"]
    yield from _table(columns, rows)


def ordered(result: EvaluationResult) -> list[str]:
    """Learned optimizers, tuned baselines, untuned ones; of each kind the best first."""
    adam = next(iter(PEERS))

    def ratio(name: str) -> float:
        return 1.0 if name == adam else _compared(result, name, adam).ratio

    kinds = (names(result), names(result, baseline=True), names(result, untuned=True))
    return [name for kind in kinds for name in sorted(kind, key=ratio)]


def _loss_columns(result: EvaluationResult, peers: Sequence[str]) -> list[str]:
    steps = " · ".join(f"{one:,}" for one in horizons(result.tasks))
    first, *others = (PEERS[one] for one in peers)
    return [f"loss ÷ that of {first} at {steps}", *(f"÷ that of {one}" for one in others)]


def _rows(result: EvaluationResult) -> Iterator[list[str]]:
    """Name; losses beside each peer; held-out loss, cells won and speed-up beside the first; divergence."""
    adam, learned = next(iter(PEERS)), names(result)
    for name in ordered(result):
        beside_adam = [_NOTHING] * 3
        if name != adam:
            overall = _compared(result, name, adam)
            beside_adam = [_held_out(overall), _won(overall), f"{overall.speed_up:.2f}"]
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
    return f"{one.wins / one.cells:.0%}"


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
